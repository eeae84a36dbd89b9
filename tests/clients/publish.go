package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func main() {
	url := env("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")
	exchange := env("LONGSHORE_EXCHANGE", "longshore")
	id := fmt.Sprintf("go-%d", time.Now().UnixNano())
	kind := "user.profile.update"
	body, err := json.Marshal(map[string]any{
		"request_id": id,
		"kind":       kind,
		"user_id":    "42",
		"payload":    map[string]any{"email": "ada@example.com"},
	})
	check(err)

	connection, err := amqp.Dial(url)
	check(err)
	defer connection.Close()
	channel, err := connection.Channel()
	check(err)
	check(channel.Confirm(false)) // the broker's word that it has the message
	confirms := channel.NotifyPublish(make(chan amqp.Confirmation, 1))
	returns := channel.NotifyReturn(make(chan amqp.Return, 1))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// mandatory: no queue bound makes it come back instead of vanish
	check(channel.PublishWithContext(ctx, exchange, kind, true, false, amqp.Publishing{
		DeliveryMode: amqp.Persistent, // kept on disk
		ContentType:  "application/json",
		MessageId:    id,
		Type:         kind,
		Body:         body,
	}))
	select {
	case confirm := <-confirms:
		if !confirm.Ack {
			log.Fatal("not published: the broker did not take it")
		}
	case <-ctx.Done():
		// Not known whether the broker has it: publish it again with the same request_id, and it
		// is done once.
		log.Fatal("no confirmation in time")
	}
	select {
	case <-returns:
		log.Fatal("not published: no queue is bound for it")
	default:
	}
	fmt.Println(id)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
