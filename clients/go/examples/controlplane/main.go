// Command controlplane serves the HTTP route that the billing service replaces, over the service's calls:
//
//	GET /admin/workspaces/{id}/llm-billing-mode
//	PUT /admin/workspaces/{id}/llm-billing-mode   {"mode": "byok" | "platform_managed" | "disabled" | null}
//
// It is an example: callers of the route keep working while its handler no longer reads the database. Try it beside a server
// that was started with `make run`:
//
//	echo secret > /tmp/admin-token && go run ./examples/controlplane -admin-token-file /tmp/admin-token
//	curl -H "Authorization: Bearer secret" localhost:8080/admin/workspaces/00000000-0000-4000-8000-000000000002/llm-billing-mode
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/molecule-ai/billing-grpc/clients/go/billing"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "where to serve the route")
	target := flag.String("billing", "localhost:50051", "the billing service")
	token := flag.String("token-file", "", "the file with this program's token for the billing service")
	ca := flag.String("ca-file", "", "the authorities that sign the billing service's certificate; empty for plain text")
	admin := flag.String("admin-token-file", "", "the file with the token that callers of the route send")
	flag.Parse()
	if err := run(*listen, *target, *token, *ca, *admin); err != nil {
		log.Fatal(err)
	}
}

func run(listen, target, token, ca, admin string) error {
	if admin == "" {
		return errors.New("-admin-token-file: without it every caller could change who pays")
	}
	access := billing.Credentials{TokenFile: token}
	if ca != "" {
		access.TLS = &billing.TLS{CAFile: ca}
	}
	client, err := billing.Dial(target, access, billing.Options{})
	if err != nil {
		return err
	}
	defer client.Close()
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: routes(client, admin), ReadTimeout: 10 * time.Second, WriteTimeout: 20 * time.Second}
	fmt.Println("listening on", listener.Addr())
	stopped, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		<-stopped.Done()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		ended <- server.Shutdown(ctx)
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-ended
}
