package billing

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

// toDefaultLog collects what the default logger is given during a test.
func toDefaultLog(t *testing.T) *bytes.Buffer {
	t.Helper()
	var logged bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&logged, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	return &logged
}

func TestAFallbackIsLoggedByDefaultAndToldToTheHook(t *testing.T) {
	var heard []Fallback
	client := New(dial(t, nobody(t)), Options{OnFallback: func(_ context.Context, made Fallback) { heard = append(heard, made) }})
	logged := toDefaultLog(t) // it is the default at the time of the call that counts
	client.ResolveMany(context.Background(), []string{workspace, "no id", workspace, "{}"})
	for i, expected := range []Fallback{
		{Method: "BatchResolveBillingModes", Reason: ServerRefused, Decisions: 2},
		{Method: "BatchResolveBillingModes", Reason: ServerUnreachable, Decisions: 2},
	} {
		if len(heard) != 2 || heard[i].Err == nil {
			t.Fatal(heard)
		}
		if heard[i].Err = nil; heard[i] != expected {
			t.Error(heard[i])
		}
		if line := strings.Split(logged.String(), "\n")[i]; !strings.Contains(line, "level=WARN") || !strings.Contains(line, string(expected.Reason)) {
			t.Error(line)
		}
	}
}

// listing is a server whose lists of vendor names a test gives, one for each call.
type listing struct {
	pb.UnimplementedBillingModeServiceServer
	digests []string
}

func (l *listing) PlanProvisionEnv(context.Context, *pb.PlanProvisionEnvRequest) (*pb.PlanProvisionEnvResponse, error) {
	resolution, set := inherits(), map[string]string{}
	resolution.WorkspaceId = ""
	for _, variable := range modeVariables {
		set[variable] = string(PlatformManaged)
	}
	list := &pb.Catalogue{Set: "agents", Digest: l.digests[0]}
	l.digests = l.digests[1:]
	return &pb.PlanProvisionEnvResponse{Resolution: resolution, SetEnv: set, RouteViaPlatformProxy: true, Catalogue: list}, nil
}

func TestAnotherListIsLoggedOnceAndToldOfEachTime(t *testing.T) {
	logged, counted := toDefaultLog(t), 0
	digests := []string{"other", "other", catalogue.Digests[Agents], "other", "third"}
	options := Options{OnDifference: func(context.Context, string, Catalogue, Catalogue) { counted++ }}
	client := New(dial(t, serve(t, &listing{digests: slices.Clone(digests)})), options)
	for range digests {
		if plan := client.PlanProvisionEnv(context.Background(), "", nil); plan.Resolution.Error != "" {
			t.Fatal(plan.Resolution)
		}
	}
	if lines := strings.Count(logged.String(), "level=WARN"); lines != 3 || counted != 4 {
		t.Errorf("%d lines, told of %d\n%s", lines, counted, logged)
	}
}

func TestModesAndTheirEnumAreTheSame(t *testing.T) {
	for number, name := range pb.BillingMode_name {
		enum := pb.BillingMode(number)
		text := strings.ToLower(strings.TrimPrefix(name, "BILLING_MODE_"))
		mode, err := ParseMode(text)
		if number == 0 {
			if err == nil || ModeOf(enum) != PlatformManaged {
				t.Error(mode, ModeOf(enum))
			}
			continue
		}
		if err != nil || mode.String() != text || mode.Enum() != enum || ModeOf(enum) != mode || mode.Open() != (mode != PlatformManaged) {
			t.Error(number, mode, err)
		}
	}
	for _, text := range []string{"", "BYOK", " byok", "free"} {
		if mode, err := ParseMode(text); err == nil || mode != "" || mode.Open() || Mode(text).Open() {
			t.Error(text)
		}
	}
	if ModeOf(4) != PlatformManaged || ModeOf(-1) != PlatformManaged {
		t.Error("an unknown number opens")
	}
	if len(modes) != len(pb.BillingMode_name)-1 || len(sources) != len(pb.BillingModeSource_name)-1 || len(verdicts) != len(pb.SecretVerdict_name)-1 {
		t.Error("the contract has a value that this client does not know")
	}
}
