#!/usr/bin/env bash
# Makes a fresh machine ready: `dev/setup.sh` for what the demo and most tests need,
# `dev/setup.sh clients` for all of them: clients in other languages, a clock to be stepped;
# `dev/setup.sh compat` for the systems of `make compat`. One line for each thing, found or installed.
# Runs again at no cost.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=0
updated=0

found() { printf '%-16s found      %s\n' "$1" "$2"; }
installed() { printf '%-16s installed  %s\n' "$1" "$2"; }
skipped() { printf '%-16s skipped    %s\n' "$1" "$2"; }
lacking() { printf '%-16s MISSING    %s\n' "$1" "$2" >&2; missing=1; }

# Each of these prints where the thing is, and fails where it is not. They look where the
# longshore-dev program looks (dev/src/programs.rs).
find_program() { command -v "$1"; }
find_rabbitmq() {
  local server ctl
  while read -r server; do
    [ -f "$(dirname "$server")/rabbitmq-env" ] && echo "$server" && return
  done < <(
    if command -v dpkg >/dev/null; then dpkg -L rabbitmq-server 2>/dev/null | grep '/sbin/rabbitmq-server$' || true; fi
    for ctl in "$(command -v rabbitmqctl || true)" /usr/lib/rabbitmq/bin/rabbitmqctl; do
      if [ -e "$ctl" ]; then echo "$(dirname "$(readlink -f "$ctl")")/rabbitmq-server"; fi
    done
    ls -d {/usr/lib/rabbitmq/lib,/opt,/usr/local/lib}/*/sbin/rabbitmq-server 2>/dev/null || true
  )
  return 1
}
find_postgres() {
  local dir
  while read -r dir; do
    [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] && echo "$dir" && return
  done < <(
    if command -v pg_config >/dev/null; then pg_config --bindir || true; fi
    if command -v initdb >/dev/null; then dirname "$(readlink -f "$(command -v initdb)")"; fi
    ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV || true
  )
  return 1
}
find_faketime() {
  { ls -d /usr{,/local}/lib{,64}{,/*}/faketime/libfaketimeMT.so.1 2>/dev/null || true; } | grep -m 1 .
}
find_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null && command -v python3; }

# need NAME FINDER [ARGUMENT] -- PACKAGES…: finds it, installs it, or says what to install.
need() {
  local name=$1 finder=$2 argument='' where
  shift 2
  if [ "$1" != -- ]; then argument=$1; shift; fi
  shift
  if where=$("$finder" ${argument:+"$argument"}); then
    found "$name" "$where"
  elif ! command -v apt-get >/dev/null; then
    lacking "$name" "install it with this system's package manager (on Debian: $*)"
  elif [ "$(id -u)" -ne 0 ]; then
    lacking "$name" "run: sudo apt-get install -y $*"
  else
    if [ "$updated" -eq 0 ]; then apt-get update -qq >&2; updated=1; fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >&2
    if where=$("$finder" ${argument:+"$argument"}); then
      installed "$name" "$where"
    else
      lacking "$name" "is not where it is looked for, although $* was installed"
    fi
  fi
}

if where=$(find_program cargo); then
  found cargo "$where"
else
  lacking cargo 'install Rust 1.90 or later, for example with rustup'
fi
need cc find_program cc -- build-essential
need rabbitmq-server find_rabbitmq -- rabbitmq-server
need postgresql find_postgres -- postgresql

if [[ " $* " == *' compat '* ]]; then
  need debootstrap find_program debootstrap -- debootstrap
fi

if [[ " $* " == *' clients '* ]]; then
  need libfaketime find_faketime -- libfaketime
  tools=$PWD/target/dev
  mkdir -p "$tools"

  need python3 find_venv -- python3 python3-venv
  if "$tools/venv/bin/python" -c 'import pika' 2>/dev/null; then
    found pika "$tools/venv"
  elif find_venv >/dev/null && python3 -m venv "$tools/venv" >&2 && "$tools/venv/bin/pip" install --quiet 'pika==1.3.2' >&2; then
    installed pika "$tools/venv"
  else
    lacking pika 'python3 -m venv or pip failed, see above'
  fi

  need node find_program node -- nodejs
  need npm find_program npm -- npm
  if [ -d "$tools/node/node_modules/amqplib" ]; then
    found amqplib "$tools/node"
  elif find_program npm >/dev/null && npm install --silent --no-audit --no-fund --prefix "$tools/node" 'amqplib@0.10' >&2; then
    installed amqplib "$tools/node"
  else
    lacking amqplib 'npm failed, see above'
  fi

  # Debian's Go libraries lie in a GOPATH of their own: build with
  # GO111MODULE=off GOPATH=/usr/share/gocode.
  library=golang-github-rabbitmq-amqp091-go-dev
  find_go_amqp() { ls -d /usr/share/gocode/src/github.com/rabbitmq/amqp091-go 2>/dev/null; }
  if ! find_go_amqp >/dev/null && ! apt-cache show "$library" >/dev/null 2>&1; then
    skipped go "this system has no package $library"
  else
    need go find_program go -- golang-go
    need amqp091-go find_go_amqp -- "$library"
  fi
fi

exit "$missing"
