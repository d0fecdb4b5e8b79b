package billing_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"os"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/molecule-ai/billing-grpc/clients/go/billing"
)

var (
	ctx         = context.Background()
	client, _   = billing.Dial("127.0.0.1:1", billing.Credentials{}, quiet) // where no server listens
	workspaceID = "7f1fc6a0-0000-4000-8000-00000000000a"
	quiet       = billing.Options{Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))}
)

func ExampleDial() {
	client, err := billing.Dial("billing.internal:50051", billing.Credentials{
		TokenFile: "/run/secrets/billing-token",
		TLS:       &billing.TLS{CAFile: "/etc/billing/ca.crt", CertFile: "/etc/billing/tls.crt", KeyFile: "/etc/billing/tls.key"},
	}, billing.Options{
		OnFallback: func(_ context.Context, made billing.Fallback) {
			log.Printf("%d fallbacks of %s: %s", made.Decisions, made.Method, made.Reason) // or count it
		},
	})
	if err != nil {
		log.Print(err)
		return
	}
	defer client.Close()
}

func ExampleNew() {
	connection, err := grpc.NewClient("localhost:50051", billing.DialOptions(insecure.NewCredentials())...)
	if err != nil {
		log.Print(err)
		return
	}
	defer connection.Close()
	client := billing.New(connection, billing.Options{BlockedKeys: billing.Vendors})
	fmt.Println(client.Resolve(ctx, workspaceID).Mode)
}

func ExampleClient_Resolve() {
	resolution := client.Resolve(ctx, workspaceID)
	fmt.Println(resolution.Mode, resolution.Source, resolution.Error)
	// Output: platform_managed constant_fallback SERVER_UNREACHABLE
}

func ExampleClient_ResolveMany() {
	for _, each := range client.ResolveMany(ctx, []string{workspaceID, "no id"}) {
		fmt.Println(each.Mode, each.Error)
	}
	// Output:
	// platform_managed SERVER_UNREACHABLE
	// platform_managed SERVER_REFUSED
}

func ExampleClient_ValidateSecretWrite() {
	decision := client.ValidateSecretWrite(ctx, workspaceID, []string{"OPENAI_API_KEY", "SLACK_TOKEN"})
	for _, each := range decision.Verdicts {
		fmt.Println(each.SecretKey, each.Verdict)
	}
	// Output:
	// OPENAI_API_KEY blocked_platform_managed
	// SLACK_TOKEN allowed
}

func ExampleClient_ValidateOrgWideSecretWrite() {
	fmt.Println(client.ValidateOrgWideSecretWrite(ctx, []string{"OPENAI_API_KEY"}).Allowed)
	// Output: false
}

func ExampleClient_PlanProvisionEnv() {
	env := map[string]string{"PATH": "/bin", "openai_api_key": "..."}
	plan := client.PlanProvisionEnv(ctx, workspaceID, slices.Collect(maps.Keys(env)))
	for name, value := range billing.Apply(plan, env) {
		fmt.Printf("%s=%s\n", name, value)
	}
	// Unordered output:
	// PATH=/bin
	// MOLECULE_LLM_BILLING_MODE=platform_managed
	// MOLECULE_LLM_BILLING_MODE_RESOLVED=platform_managed
}

func ExampleClient_Set() {
	found, err := client.Get(ctx, workspaceID)
	for err == nil {
		var stale *billing.EtagStaleError
		_, err = client.Set(ctx, workspaceID, billing.BYOK, billing.SetOptions{Reason: "own vendor contract", Etag: found.Etag})
		if !errors.As(err, &stale) {
			break
		}
		// Somebody changed it since. Decide again, with what it is now.
		found, err = stale.Current, nil
	}
	var failed *billing.Error
	if errors.As(err, &failed) {
		fmt.Println(failed.Reason, failed.OutcomeUnknown())
	}
	// Output: SERVER_UNREACHABLE true
}

func ExampleClient_Changes() {
	for change, err := range client.Changes(ctx, workspaceID) {
		if err != nil {
			log.Print(err)
			return
		}
		fmt.Println(change.ChangeTime, change.Principal, change.Reason)
	}
}

func ExampleParseMode() {
	_, err := billing.ParseMode("BYOK")
	fmt.Println(err)
	// Output: unknown billing mode "BYOK" (allowed: platform_managed, byok, disabled)
}
