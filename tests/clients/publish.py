import json, os, sys, uuid
import pika

url = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")
exchange = os.environ.get("LONGSHORE_EXCHANGE", "longshore")
request = {
    "request_id": str(uuid.uuid4()),
    "kind": "user.profile.update",
    "user_id": "42",
    "payload": {"email": "ada@example.com"},
}

connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()  # the broker's word that it has the message
try:
    channel.basic_publish(
        exchange=exchange,
        routing_key=request["kind"],
        body=json.dumps(request),
        mandatory=True,  # no queue bound: an error instead of silence
        properties=pika.BasicProperties(
            delivery_mode=2,  # kept on disk
            content_type="application/json",
            message_id=request["request_id"],
            type=request["kind"],
        ),
    )
except (pika.exceptions.UnroutableError, pika.exceptions.NackError) as error:
    sys.exit(f"not published: {error!r}")
# On any other error it is not known whether the broker has it: publish it again with the same
# request_id, and it is done once.
print(request["request_id"])
connection.close()
