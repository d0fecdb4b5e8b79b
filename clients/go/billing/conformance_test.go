package billing

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

type vector struct {
	Name   string
	Method string
	Client struct {
		BlockedKeys      string   `json:"blocked_keys"`
		ExtraBlockedKeys []string `json:"extra_blocked_keys"`
		TimeoutMS        int      `json:"timeout_ms"`
	}
	Request json.RawMessage
	Server  map[string]json.RawMessage
	Expect  any
}

func load(t *testing.T, stem string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", stem+".json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(stem, err)
	}
}

// server is the address of the command in CONFORMANCE_SERVER, which is started once.
func server(t *testing.T) string {
	t.Helper()
	command := strings.Fields(os.Getenv("CONFORMANCE_SERVER"))
	if len(command) == 0 {
		t.Skip("no vectors were run: set CONFORMANCE_SERVER to the command that starts the server, " +
			`as in CONFORMANCE_SERVER="billing-grpc conformance-server"`)
	}
	address, err := started.start(command)
	if err != nil {
		t.Fatal(err)
	}
	return address
}

var started process

type process struct {
	*exec.Cmd
	address string
	err     error
	once    sync.Once
}

func (p *process) start(command []string) (string, error) {
	p.once.Do(func() {
		p.Cmd = exec.Command(command[0], command[1:]...)
		p.Stderr = os.Stderr
		var out io.Reader
		if out, p.err = p.StdoutPipe(); p.err != nil {
			return
		}
		if p.err = p.Start(); p.err != nil {
			p.Cmd = nil
			return
		}
		line, _ := bufio.NewReader(out).ReadString('\n')
		address, found := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
		if p.address = address; !found {
			p.err = fmt.Errorf("the server said %q", line)
		}
	})
	return p.address, p.err
}

func TestMain(m *testing.M) {
	code := m.Run()
	if started.Cmd != nil {
		_ = started.Process.Signal(syscall.SIGTERM)
		if err := started.Wait(); err != nil {
			fmt.Fprintln(os.Stderr, "the server did not stop cleanly:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// nobody is an address where nobody listens.
func nobody(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	connection, err := grpc.NewClient(address, DialOptions(insecure.NewCredentials())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return connection
}

// decide asks as the vector says, through nothing but the client's own methods.
func decide(t *testing.T, ctx context.Context, client *Client, v vector) any {
	t.Helper()
	request := func(into proto.Message) {
		if err := protojson.Unmarshal(v.Request, into); err != nil {
			t.Fatal(err)
		}
	}
	switch v.Method {
	case "ResolveBillingMode":
		var q pb.ResolveBillingModeRequest
		if request(&q); q.OrgDefault != nil {
			return client.ResolveWhatIf(ctx, q.GetWorkspaceId(), q.GetOrgDefault())
		}
		return client.Resolve(ctx, q.GetWorkspaceId())
	case "BatchResolveBillingModes":
		var q pb.BatchResolveBillingModesRequest
		request(&q)
		return client.ResolveMany(ctx, q.GetWorkspaceIds())
	case "ValidateSecretWrite":
		var q pb.ValidateSecretWriteRequest
		if request(&q); q.GetOrgWide() != nil {
			return client.ValidateOrgWideSecretWrite(ctx, q.GetSecretKeys())
		}
		return client.ValidateSecretWrite(ctx, q.GetWorkspaceId(), q.GetSecretKeys())
	case "PlanProvisionEnv":
		var q pb.PlanProvisionEnvRequest
		request(&q)
		return client.PlanProvisionEnv(ctx, q.GetWorkspaceId(), q.GetEnvKeys())
	}
	t.Fatal("no such method:", v.Method)
	return nil
}

// neutral is an answer in the vectors' terms: without sentences for people, absent things as null or empty.
func neutral(t *testing.T, answer any) any {
	t.Helper()
	text, err := json.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	var plain any
	if err := json.Unmarshal(text, &plain); err != nil {
		t.Fatal(err)
	}
	return clean(plain)
}

func clean(value any) any {
	switch value := value.(type) {
	case []any:
		for i := range value {
			value[i] = clean(value[i])
		}
	case map[string]any:
		delete(value, "reason")
		delete(value, "catalogue")
		delete(value, "suspect_keys")
		delete(value, "message")
		for key, inner := range value {
			switch {
			case key == "error" && inner == "":
				value[key] = nil
			case inner == nil && (key == "strip_keys" || key == "verdicts"):
				value[key] = []any{}
			default:
				value[key] = clean(inner)
			}
		}
	}
	return value
}

// withNames is an answer in which the names of a set stand for "@SET" in every strip_keys.
func withNames(value any) any {
	switch value := value.(type) {
	case []any:
		for i := range value {
			value[i] = withNames(value[i])
		}
	case map[string]any:
		for key, inner := range value {
			value[key] = withNames(inner)
			if listed, ok := inner.([]any); ok && key == "strip_keys" {
				value[key] = namesOf(listed)
			}
		}
	}
	return value
}

func namesOf(listed []any) []any {
	var found []string
	several := false
	for _, each := range listed {
		if set, ok := strings.CutPrefix(each.(string), "@"); ok {
			found, several = append(found, catalogue.Sets[set]...), true
		} else {
			found = append(found, each.(string))
		}
	}
	if several {
		slices.Sort(found)
		found = slices.Compact(found)
	}
	names := make([]any, len(found))
	for i, name := range found {
		names[i] = name
	}
	return names
}

// same compares; an expected error may be a list of reasons, any of which will do.
func same(expected, actual any) bool {
	switch expected := expected.(type) {
	case map[string]any:
		found, ok := actual.(map[string]any)
		if !ok || len(found) != len(expected) {
			return false
		}
		for key, value := range expected {
			reasons, several := value.([]any)
			inner, present := found[key]
			if key == "error" && several && slices.Contains(reasons, inner) {
				continue
			}
			if !present || !same(value, inner) {
				return false
			}
		}
		return true
	case []any:
		found, ok := actual.([]any)
		return ok && slices.EqualFunc(expected, found, same)
	}
	return reflect.DeepEqual(expected, actual)
}

func TestVectors(t *testing.T) {
	t.Parallel()
	address := server(t)
	run, passed := 0, 0
	for _, stem := range []string{"resolution", "secrets", "plan", "closed"} {
		var file struct{ Cases []vector }
		load(t, stem, &file)
		if len(file.Cases) == 0 {
			t.Errorf("%s.json holds no vectors", stem)
		}
		for _, v := range file.Cases {
			run++
			if t.Run(stem+"/"+v.Name, func(t *testing.T) { play(t, address, stem, v) }) {
				passed++
			}
		}
	}
	t.Logf("%d of %d vectors passed", passed, run)
}

func play(t *testing.T, address, stem string, v vector) {
	if _, unreachable := v.Server["unreachable"]; unreachable {
		address = nobody(t)
	}
	heard, logged := map[Reason]bool{}, bytes.Buffer{}
	client := New(dial(t, address), Options{
		Timeout:          time.Duration(v.Client.TimeoutMS) * time.Millisecond,
		BlockedKeys:      v.Client.BlockedKeys,
		ExtraBlockedKeys: v.Client.ExtraBlockedKeys,
		Logger:           slog.New(slog.NewTextHandler(&logged, nil)),
		OnFallback: func(_ context.Context, made Fallback) {
			if made.Method != v.Method || made.Decisions < 1 || made.Err == nil {
				t.Errorf("told of %+v", made)
			}
			heard[made.Reason] = true
		},
	})
	ctx := metadata.AppendToOutgoingContext(context.Background(), "x-conformance-case", stem+"/"+v.Name)
	started := time.Now()
	answer := neutral(t, decide(t, ctx, client, v))
	// Short of the 5 s of the service config, so that it is the client's own deadline that ended the call.
	if v.Client.TimeoutMS > 0 && time.Since(started) > 4*time.Second {
		t.Errorf("told to answer within %d ms, it took %s", v.Client.TimeoutMS, time.Since(started))
	}
	v.Expect = withNames(v.Expect)
	if !same(v.Expect, answer) {
		expected, _ := json.Marshal(v.Expect)
		actual, _ := json.Marshal(answer)
		t.Errorf("\nexpected %s\nanswered %s", expected, actual)
	}
	text, _ := json.Marshal(answer)
	for _, reason := range []Reason{ServerUnreachable, ServerRefused, AnswerInvalid} {
		answered := strings.Contains(string(text), string(reason))
		said := strings.Contains(logged.String(), "level=WARN") && strings.Contains(logged.String(), "reason="+string(reason))
		if heard[reason] != answered || said != answered {
			t.Errorf("OnFallback heard %v; the answer is %s; the log is %s", heard, text, &logged)
		}
	}
}

func TestApply(t *testing.T) {
	var file struct {
		Cases []struct {
			Name        string
			Plan        Plan
			Env, Expect map[string]string
		}
	}
	load(t, "apply", &file)
	passed := 0
	for _, v := range file.Cases {
		if t.Run(v.Name, func(t *testing.T) {
			before := maps.Clone(v.Env)
			v.Plan.StripKeys = expanded(v.Plan.StripKeys)
			if got := Apply(v.Plan, v.Env); !reflect.DeepEqual(got, v.Expect) {
				t.Errorf("\nexpected %v\nanswered %v", v.Expect, got)
			}
			if !maps.Equal(before, v.Env) {
				t.Errorf("changed what it was given: %v", v.Env)
			}
		}) {
			passed++
		}
	}
	if passed == 0 {
		t.Error("no vectors")
	}
	t.Logf("%d of %d apply vectors passed", passed, len(file.Cases))
}

func expanded(listed []string) (found []string) {
	for _, each := range listed {
		if set, ok := strings.CutPrefix(each, "@"); ok {
			found = append(found, catalogue.Sets[set]...)
		} else {
			found = append(found, each)
		}
	}
	return found
}

func TestTheVendorKeysAreTheContracts(t *testing.T) {
	if catalogue.ReservedPrefix != reservedPrefix {
		t.Error(catalogue.ReservedPrefix)
	}
	if counts := []int{len(listed(Core, nil)), len(listed(Agents, nil)), len(listed(Vendors, nil))}; counts[0] != 23 || !slices.IsSorted(counts) {
		t.Error(counts)
	}
	if len(listed("al", nil)) != len(listed(Vendors, nil)) {
		t.Error("an unknown set is not the largest")
	}
}

func TestAServerThatBlocksOtherNamesIsHeardOfAndBothSetsGo(t *testing.T) {
	const id, name = "7f1fc6a0-0000-4000-8000-00000000000a", "plan/the-larger-set-of-the-server-counts"
	var heard []Catalogue
	options := Options{BlockedKeys: Core, OnDifference: func(_ context.Context, _ string, own, server Catalogue) {
		heard = append(heard, own, server)
	}}
	connection := dial(t, server(t))
	ctx := metadata.AppendToOutgoingContext(context.Background(), "x-conformance-case", name)
	plan := New(connection, options).PlanProvisionEnv(ctx, id, []string{"AI21_API_KEY", "HF_TOKEN", "PATH"})
	if !slices.Equal(plan.StripKeys, []string{"AI21_API_KEY", "HF_TOKEN"}) || plan.Catalogue.Set != Vendors {
		t.Errorf("%+v", plan)
	}
	own, theirs := Catalogue{Core, catalogue.Version, catalogue.Digests[Core]}, Catalogue{Vendors, catalogue.Version, catalogue.Digests[Vendors]}
	if !slices.Equal(heard, []Catalogue{own, theirs}) {
		t.Error(heard)
	}
	options.BlockedKeys = Vendors
	if New(connection, options).PlanProvisionEnv(ctx, id, nil); len(heard) != 2 {
		t.Error(heard)
	}
}

func TestNoNamesAreNotAnUnknownEnvironment(t *testing.T) {
	client := New(dial(t, nobody(t)), Options{})
	none, unknown := client.PlanProvisionEnv(context.Background(), "", []string{}), client.PlanProvisionEnv(context.Background(), "", nil)
	if len(none.StripKeys) != 0 || !slices.Equal(unknown.StripKeys, catalogue.Sets[Agents]) {
		t.Error(none.StripKeys, unknown.StripKeys)
	}
	left := Apply(none, map[string]string{"ANTHROPIC_BASE_URL": "https://mine", "PATH": "/bin"})
	if len(left) != 3 || left["PATH"] != "/bin" {
		t.Error(left)
	}
}

func TestACallersCancellationIsClosedToo(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	answer := New(dial(t, nobody(t)), Options{}).Resolve(ctx, "")
	if answer.Mode != PlatformManaged || answer.Error != ServerUnreachable {
		t.Errorf("%+v", answer)
	}
}

func TestACallWithoutADeadlineGetsOne(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and never says anything
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client := New(dial(t, listener.Addr().String()), Options{Timeout: 200 * time.Millisecond})
	started := time.Now()
	if answer := client.PlanProvisionEnv(context.Background(), "", nil); answer.Resolution.Error != ServerUnreachable {
		t.Errorf("%+v", answer.Resolution)
	}
	if took := time.Since(started); took > 3*time.Second {
		t.Errorf("it took %v", took) // the service config alone would end it after five
	}
	if timeout := New(dial(t, "passthrough:nobody"), Options{}).options.Timeout; timeout != 5*time.Second {
		t.Error(timeout)
	}
}

func TestOneEnvironmentLeavesNothingForTheNext(t *testing.T) {
	client := New(dial(t, nobody(t)), Options{})
	client.PlanProvisionEnv(context.Background(), "", []string{"openai_api_key"})
	if plan := client.PlanProvisionEnv(context.Background(), "", nil); slices.Contains(plan.StripKeys, "openai_api_key") {
		t.Error(plan.StripKeys)
	}
}

func TestWhatIsUnavailableIsAskedAgain(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	unavailable := func(any, grpc.ServerStream) error { asked.Add(1); return status.Error(codes.Unavailable, "") }
	server := grpc.NewServer(grpc.UnknownServiceHandler(unavailable))
	go server.Serve(listener)
	defer server.Stop()
	New(dial(t, listener.Addr().String()), Options{}).Resolve(context.Background(), "")
	if asked.Load() != 3 {
		t.Errorf("asked %d times", asked.Load())
	}
}

func TestMoreIDsThanACallTakesAreAllAskedAbout(t *testing.T) {
	const name, id = "resolution/set-byok-org-default-unset", "7f1fc6a0-0000-4000-8000-00000000000a"
	client := New(dial(t, server(t)), Options{})
	ctx := metadata.AppendToOutgoingContext(context.Background(), "x-conformance-case", name)
	ids := slices.Repeat([]string{id, "no id", strings.ToUpper(id)}, 1001)
	for i, answer := range client.ResolveMany(ctx, ids) {
		if malformed := i%3 == 1; malformed != (answer.Error == ServerRefused) || malformed == (answer.Mode == BYOK) {
			t.Fatalf("%d: %+v", i, answer)
		}
	}
}

func TestANameTooLongToSendClosesNothing(t *testing.T) {
	const id = "7f1fc6a0-0000-4000-8000-00000000000a"
	client, long := New(dial(t, server(t)), Options{}), strings.Repeat(" ", 5_000_000)+"openai_api_key"
	ctx := metadata.AppendToOutgoingContext(context.Background(), "x-conformance-case", "plan/own-platform-managed")
	if plan := client.PlanProvisionEnv(ctx, id, []string{long}); plan.Resolution.Error != "" || !slices.Contains(plan.StripKeys, long) {
		t.Errorf("%+v", plan.Resolution)
	}
	ctx = metadata.AppendToOutgoingContext(context.Background(), "x-conformance-case", "secrets/every-listed-key-under-byok")
	decision := client.ValidateSecretWrite(ctx, id, []string{long, "HF_TOKEN"})
	if decision.Allowed || decision.Verdicts[0].Verdict != BlockedPlatformManaged || decision.Verdicts[1].Verdict != Allowed {
		t.Errorf("%+v", decision.Verdicts[1])
	}
}

func TestANameBesideBytesThatAreNoTextGoes(t *testing.T) {
	plan := New(dial(t, nobody(t)), Options{}).PlanProvisionEnv(context.Background(), "", []string{"\xffOPENAI_API_KEY"})
	left := Apply(plan, map[string]string{"\xffOPENAI_API_KEY": "sk", "hf_token\x80": "hf", "caf\xe9": "stays"})
	if len(left) != 3 || left["caf\xe9"] != "stays" || !slices.Contains(plan.StripKeys, "\xffOPENAI_API_KEY") {
		t.Error(left)
	}
}

func TestWhatAProgramCouldReadIsAskedAboutInPlaceOfAVariableThatCannotBeSent(t *testing.T) {
	for variable, name := range map[string]string{
		"-NEW_KEY": "NEW_KEY", "export NEW_KEY.": "NEW_KEY", "ＮＥＷ_KEY": "NEW_KEY", "\ufeffnew_\u212aey": "NEW_KEY", "－ＮEW_KEY": "NEW_KEY", "N℮w_K\u03b5Y": "NEW_KEY", "\u0332NEW\u02cdKEY": "_NEW_KEY",
		"\"NEW_KEY=secret_value": "NEW_KEY",
	} {
		if asked := sendable(variable); !slices.Contains(asked, name) || slices.Contains(asked, "SECRET_VALUE") {
			t.Errorf("%q: %q", variable, asked)
		}
	}
}

func TestAVariableWhoseNameCannotBeSentDoesNotCloseThePlan(t *testing.T) {
	const name = "plan/own-byok"
	client := New(dial(t, server(t)), Options{})
	ctx := metadata.AppendToOutgoingContext(context.Background(), "x-conformance-case", name)
	plan := client.PlanProvisionEnv(ctx, "7f1fc6a0-0000-4000-8000-00000000000a", []string{"caf\xe9", "PATH"})
	if plan.Resolution.Mode != BYOK || plan.Resolution.Error != "" {
		t.Errorf("%+v", plan.Resolution)
	}
}
