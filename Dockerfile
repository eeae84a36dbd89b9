# syntax=docker/dockerfile:1
# docker build --build-arg LONGSHORE_COMMIT=$(git rev-parse --short=12 HEAD) -t longshore .

FROM rust:1-slim-bookworm AS build
WORKDIR /src
# ring has parts in C.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY Cargo.toml Cargo.lock build.rs ./
COPY src src
COPY dev dev
COPY drill drill
COPY config config
# A build in here has no .git to ask.
ARG LONGSHORE_COMMIT=unknown
ENV LONGSHORE_COMMIT=$LONGSHORE_COMMIT
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin longshore && cp target/release/longshore /longshore

# The C library and the certificates of the public authorities, no shell, user 65532.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /longshore /usr/local/bin/longshore
COPY --from=build /src/config/user-service /usr/share/longshore/user-service
# What `longshore` would otherwise start itself anew for; see docs/decisions/0007.
ENV RUST_MIN_STACK=67108864 LONGSHORE__ADMIN__BIND=0.0.0.0:9600
USER 65532:65532
EXPOSE 9600
STOPSIGNAL SIGTERM
# Probes are HTTP: /health/live and /health/ready on port 9600; see deploy/kubernetes.yaml. There is no
# HEALTHCHECK, for there is nothing in here that could ask.
ENTRYPOINT ["/usr/local/bin/longshore"]
CMD ["run"]
