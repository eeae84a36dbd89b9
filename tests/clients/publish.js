const amqp = require("amqplib");
const { randomUUID } = require("node:crypto");

const url = process.env.AMQP_URL ?? "amqp://guest:guest@127.0.0.1:5672/%2f";
const exchange = process.env.LONGSHORE_EXCHANGE ?? "longshore";
const request = {
  request_id: randomUUID(),
  kind: "user.profile.update",
  user_id: "42",
  payload: { email: "ada@example.com" },
};

async function main() {
  const connection = await amqp.connect(url);
  const channel = await connection.createConfirmChannel(); // the broker's word that it has the message
  let returned = false;
  channel.on("return", () => (returned = true));
  channel.publish(exchange, request.kind, Buffer.from(JSON.stringify(request)), {
    mandatory: true, // no queue bound: it comes back instead of vanishing
    persistent: true, // kept on disk
    contentType: "application/json",
    messageId: request.request_id,
    type: request.kind,
  });
  // On an error it is not known whether the broker has it: publish it again with the same
  // request_id, and it is done once.
  await channel.waitForConfirms();
  if (returned) throw new Error("not published: no queue is bound for it");
  console.log(request.request_id);
  await connection.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
