package billing

import (
	"context"
	"errors"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

const workspace = "7f1fc6a0-0000-4000-8000-00000000000a"

// scripted is a server of administration that answers what a test says. The real one is asked in the Python tests.
type scripted struct {
	pb.UnimplementedBillingModeServiceServer
	get  func(*pb.GetWorkspaceBillingModeRequest) (*pb.GetWorkspaceBillingModeResponse, error)
	set  func(*pb.SetWorkspaceBillingModeRequest) (*pb.SetWorkspaceBillingModeResponse, error)
	list func(*pb.ListBillingModeChangesRequest) (*pb.ListBillingModeChangesResponse, error)
	all  func(*pb.ListWorkspaceBillingModesRequest) (*pb.ListWorkspaceBillingModesResponse, error)
	sum  func(*pb.SummarizeBillingModesRequest) (*pb.SummarizeBillingModesResponse, error)
}

func (s scripted) SummarizeBillingModes(
	_ context.Context, q *pb.SummarizeBillingModesRequest,
) (*pb.SummarizeBillingModesResponse, error) {
	return s.sum(q)
}

func (s scripted) ListWorkspaceBillingModes(
	_ context.Context, q *pb.ListWorkspaceBillingModesRequest,
) (*pb.ListWorkspaceBillingModesResponse, error) {
	return s.all(q)
}

func (s scripted) GetWorkspaceBillingMode(
	_ context.Context, q *pb.GetWorkspaceBillingModeRequest,
) (*pb.GetWorkspaceBillingModeResponse, error) {
	return s.get(q)
}

func (s scripted) SetWorkspaceBillingMode(
	_ context.Context, q *pb.SetWorkspaceBillingModeRequest,
) (*pb.SetWorkspaceBillingModeResponse, error) {
	return s.set(q)
}

func (s scripted) ListBillingModeChanges(
	_ context.Context, q *pb.ListBillingModeChangesRequest,
) (*pb.ListBillingModeChangesResponse, error) {
	return s.list(q)
}

func serve(t *testing.T, service pb.BillingModeServiceServer, options ...grpc.ServerOption) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(options...)
	pb.RegisterBillingModeServiceServer(server, service)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

func scriptedClient(t *testing.T, service scripted) *Client {
	t.Helper()
	return New(dial(t, serve(t, service)), Options{})
}

func byok(etag string) *pb.WorkspaceBillingMode {
	text := "byok"
	return &pb.WorkspaceBillingMode{Etag: etag, UpdatedBy: "controlplane", UpdateTime: timestamppb.New(time.Unix(1e9, 0)),
		Resolution: &pb.BillingModeResolution{
			WorkspaceId: workspace, ResolvedMode: pb.BillingMode_BILLING_MODE_BYOK, WorkspaceOverride: &text,
			Source: pb.BillingModeSource_BILLING_MODE_SOURCE_WORKSPACE_OVERRIDE, OrgDefault: pb.BillingMode_BILLING_MODE_PLATFORM_MANAGED,
		}}
}

func inherits() *pb.BillingModeResolution {
	return &pb.BillingModeResolution{
		WorkspaceId: workspace, ResolvedMode: pb.BillingMode_BILLING_MODE_PLATFORM_MANAGED,
		Source: pb.BillingModeSource_BILLING_MODE_SOURCE_CONSTANT_FALLBACK, OrgDefault: pb.BillingMode_BILLING_MODE_PLATFORM_MANAGED,
	}
}

func failure(t *testing.T, code codes.Code, domain string, reason Reason, more ...protoadapt.MessageV1) error {
	t.Helper()
	details := append([]protoadapt.MessageV1{&errdetails.ErrorInfo{Domain: domain, Reason: string(reason)}}, more...)
	made, err := status.New(code, "a sentence").WithDetails(details...)
	if err != nil {
		t.Fatal(err)
	}
	return made.Err()
}

func TestAdministrationGivesWhatTheServerSaid(t *testing.T) {
	var asked *pb.SetWorkspaceBillingModeRequest
	client := scriptedClient(t, scripted{
		get: func(*pb.GetWorkspaceBillingModeRequest) (*pb.GetWorkspaceBillingModeResponse, error) {
			return &pb.GetWorkspaceBillingModeResponse{BillingMode: byok("41")}, nil
		},
		set: func(q *pb.SetWorkspaceBillingModeRequest) (*pb.SetWorkspaceBillingModeResponse, error) {
			asked = q
			if q.GetInherit() != nil {
				state := &pb.WorkspaceBillingMode{Resolution: inherits(), Etag: "43"}
				return &pb.SetWorkspaceBillingModeResponse{BillingMode: state, Previous: byok("").Resolution}, nil
			}
			return &pb.SetWorkspaceBillingModeResponse{BillingMode: byok("42"), Previous: inherits()}, nil
		},
	})
	found, err := client.Get(context.Background(), workspace)
	if err != nil || found.Resolution.Mode != BYOK || found.Etag != "41" || found.UpdatedBy != "controlplane" || found.UpdateTime.Unix() != 1e9 {
		t.Errorf("%+v, %v", found, err)
	}
	update, err := client.Set(context.Background(), workspace, BYOK, SetOptions{Reason: "why", Etag: "41", ValidateOnly: true})
	if err != nil || update.Current.Etag != "42" || update.Previous.Mode != PlatformManaged {
		t.Errorf("%+v, %v", update, err)
	}
	if asked.GetMode() != pb.BillingMode_BILLING_MODE_BYOK || asked.GetReason() != "why" || asked.GetEtag() != "41" || !asked.GetValidateOnly() {
		t.Error(asked)
	}
	update, err = client.Inherit(context.Background(), workspace, SetOptions{})
	if err != nil || update.Current.Etag != "43" || !update.Current.UpdateTime.IsZero() || asked.GetInherit() == nil || asked.GetValidateOnly() {
		t.Errorf("%+v, %v, %v", update, err, asked)
	}
}

func TestAStaleEtagCarriesTheCurrentState(t *testing.T) {
	client := scriptedClient(t, scripted{set: func(*pb.SetWorkspaceBillingModeRequest) (*pb.SetWorkspaceBillingModeResponse, error) {
		return nil, failure(t, codes.Aborted, errorDomain, EtagStale, byok("44"))
	}})
	_, err := client.Set(context.Background(), workspace, Disabled, SetOptions{Etag: "41"})
	var stale *EtagStaleError
	if !errors.As(err, &stale) || stale.Current.Etag != "44" || stale.Current.Resolution.Mode != BYOK {
		t.Fatal(err)
	}
	var general *Error
	if !errors.As(err, &general) || general.Reason != EtagStale || status.Code(err) != codes.Aborted {
		t.Error(err)
	}
}

func TestAStaleEtagWithoutAUsableStateIsAnError(t *testing.T) {
	other := byok("44")
	other.Resolution.WorkspaceId = "7f1fc6a0-0000-4000-8000-00000000000b"
	for _, err := range []error{
		failure(t, codes.Aborted, errorDomain, EtagStale), failure(t, codes.Aborted, errorDomain, EtagStale, other),
	} {
		found := callError("SetWorkspaceBillingMode", workspace, err)
		var stale *EtagStaleError
		if general, ok := found.(*Error); errors.As(found, &stale) || !ok || general.Reason != EtagStale {
			t.Errorf("%#v", found)
		}
	}
}

func TestTheReasonOfAFailureIsTheServicesOrTheClients(t *testing.T) {
	for name, each := range map[string]struct {
		err    error
		reason Reason
	}{
		"the service's":               {failure(t, codes.NotFound, errorDomain, WorkspaceNotFound), WorkspaceNotFound},
		"the database's":              {failure(t, codes.Unavailable, errorDomain, DatabaseTimeout), DatabaseTimeout},
		"of a newer release":          {failure(t, codes.Internal, errorDomain, "NEW_ONE"), "NEW_ONE"},
		"of another domain":           {failure(t, codes.NotFound, "elsewhere", WorkspaceNotFound), ServerRefused},
		"a status alone":              {status.Error(codes.NotFound, ""), ServerRefused},
		"a status of the service":     {status.Error(codes.PermissionDenied, ""), RoleDenied},
		"no credentials":              {status.Error(codes.Unauthenticated, ""), CredentialsInvalid},
		"no connection":               {status.Error(codes.Unavailable, ""), ServerUnreachable},
		"late":                        {status.Error(codes.DeadlineExceeded, ""), ServerUnreachable},
		"given up":                    {status.Error(codes.Canceled, ""), ServerUnreachable},
		"too long, which is no limit": {status.Error(codes.ResourceExhausted, ""), ServerRefused},
	} {
		t.Run(name, func(t *testing.T) {
			found := callError("GetWorkspaceBillingMode", workspace, each.err)
			var general *Error
			if !errors.As(found, &general) || general.Reason != each.reason || status.Code(found) != status.Code(each.err) {
				t.Errorf("%#v", found)
			}
			if unknown := each.reason == ServerUnreachable || each.reason == DatabaseTimeout; general.OutcomeUnknown() != unknown {
				t.Errorf("%#v", found)
			}
		})
	}
}

func TestAWriteWhoseAnswerMayHaveBeenCutShortHasAnUnknownOutcome(t *testing.T) {
	for code, unknown := range map[codes.Code]bool{
		codes.Internal: true, codes.Unknown: true, codes.DataLoss: true, codes.ResourceExhausted: true,
		codes.Unimplemented: false, codes.PermissionDenied: false,
	} {
		var general *Error
		if !errors.As(callError(setMode, workspace, status.Error(code, "")), &general) || general.OutcomeUnknown() != unknown {
			t.Errorf("%v: %#v", code, general)
		}
		if !errors.As(callError(listChanges, workspace, status.Error(code, "")), &general) || general.Reason == AnswerInvalid {
			t.Errorf("%v: %#v", code, general)
		}
	}
	overloaded := failure(t, codes.ResourceExhausted, errorDomain, Overloaded)
	var general *Error
	if !errors.As(callError(setMode, workspace, overloaded), &general) || general.Reason != Overloaded {
		t.Errorf("%#v", general)
	}
}

func TestAnInvalidRequestNamesItsFields(t *testing.T) {
	bad := &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "mode", Description: "unknown"}}}
	err := callError("SetWorkspaceBillingMode", workspace, failure(t, codes.InvalidArgument, errorDomain, ModeInvalid, bad))
	var general *Error
	if !errors.As(err, &general) || !slices.Equal(general.Fields, []FieldError{{"mode", "unknown"}}) {
		t.Errorf("%#v", err)
	}
}

func TestAnUnknownModeIsSentAsNone(t *testing.T) {
	for _, mode := range []Mode{"", "BYOK", "free"} {
		if mode.Enum() != pb.BillingMode_BILLING_MODE_UNSPECIFIED {
			t.Error(mode)
		}
	}
}

func TestAnAnswerOfAdministrationThatCannotBeTrueIsAnError(t *testing.T) {
	other := byok("1")
	other.Resolution.WorkspaceId = "7f1fc6a0-0000-4000-8000-00000000000b"
	late := byok("1")
	late.UpdateTime = &timestamppb.Timestamp{Seconds: 1 << 60}
	for name, state := range map[string]*pb.WorkspaceBillingMode{"nothing": nil, "another workspace": other, "another time": late} {
		t.Run(name, func(t *testing.T) {
			client := scriptedClient(t, scripted{
				get: func(*pb.GetWorkspaceBillingModeRequest) (*pb.GetWorkspaceBillingModeResponse, error) {
					return &pb.GetWorkspaceBillingModeResponse{BillingMode: state}, nil
				},
				set: func(*pb.SetWorkspaceBillingModeRequest) (*pb.SetWorkspaceBillingModeResponse, error) {
					return &pb.SetWorkspaceBillingModeResponse{BillingMode: state, Previous: inherits()}, nil
				},
			})
			_, err := client.Get(context.Background(), workspace)
			requireReason(t, err, AnswerInvalid)
			_, err = client.Set(context.Background(), workspace, BYOK, SetOptions{})
			requireReason(t, err, AnswerInvalid)
		})
	}
}

func TestAWriteThatShowsAnotherModeIsAnError(t *testing.T) {
	client := scriptedClient(t, scripted{set: func(*pb.SetWorkspaceBillingModeRequest) (*pb.SetWorkspaceBillingModeResponse, error) {
		return &pb.SetWorkspaceBillingModeResponse{BillingMode: byok("1"), Previous: inherits()}, nil
	}})
	_, err := client.Set(context.Background(), workspace, Disabled, SetOptions{})
	requireReason(t, err, AnswerInvalid)
	_, err = client.Inherit(context.Background(), workspace, SetOptions{})
	requireReason(t, err, AnswerInvalid)
}

func requireReason(t *testing.T, err error, reason Reason) {
	t.Helper()
	var general *Error
	if !errors.As(err, &general) || general.Reason != reason {
		t.Errorf("%#v", err)
	}
}

// twoPages lists changes 1 to 4, and then fails if it is asked on.
func twoPages(next map[string]string, asked *int) scripted {
	return scripted{list: func(q *pb.ListBillingModeChangesRequest) (*pb.ListBillingModeChangesResponse, error) {
		*asked++
		ids := map[string][]string{"": {"1", "2"}, "second": {"3", "4"}}[q.GetPageToken()]
		if ids == nil {
			return nil, status.Error(codes.PermissionDenied, "")
		}
		answer := &pb.ListBillingModeChangesResponse{NextPageToken: next[q.GetPageToken()]}
		for _, id := range ids {
			answer.Changes = append(answer.Changes, &pb.BillingModeChange{ChangeId: id, WorkspaceId: workspace})
		}
		return answer, nil
	}}
}

func TestChangesFetchPageAfterPageAndEndWithTheFirstError(t *testing.T) {
	for name, each := range map[string]struct {
		next   map[string]string
		found  string
		reason Reason
	}{
		"to the end":                {map[string]string{"": "second"}, "1234", ""},
		"until one fails":           {map[string]string{"": "second", "second": "third"}, "1234", RoleDenied},
		"a token that is its own":   {map[string]string{"": "second", "second": "second"}, "1234", AnswerInvalid},
		"the first that is refused": {map[string]string{"": "third"}, "12", RoleDenied},
	} {
		t.Run(name, func(t *testing.T) {
			var found string
			var last error
			for change, err := range scriptedClient(t, twoPages(each.next, new(int))).Changes(context.Background(), workspace) {
				found, last = found+change.ChangeID, err
			}
			if each.reason != "" {
				requireReason(t, last, each.reason)
			} else if last != nil {
				t.Error(last)
			}
			if found != each.found {
				t.Error(found)
			}
		})
	}
}

func TestALoopThatEndsEarlyFetchesNothingMore(t *testing.T) {
	asked := 0
	for range scriptedClient(t, twoPages(map[string]string{"": "second"}, &asked)).Changes(context.Background(), "") {
		break
	}
	if asked != 1 {
		t.Error(asked)
	}
}

func TestAChangeOfTheOrgDefaultHasNoWorkspaceAndEveryOtherHasOne(t *testing.T) {
	byok := "byok"
	for kind, workspaceID := range map[ChangeKind]string{WorkspaceChange: workspace, OrgDefaultChange: ""} {
		sent := &pb.BillingModeChange{Kind: pb.BillingModeChangeKind(kind), WorkspaceId: workspaceID, NewOverride: &byok, Server: "a", Origin: "file"}
		found, err := readChange(sent, "")
		if err != nil || found.Kind != kind || found.WorkspaceID != workspaceID || found.Server != "a" || found.Origin != "file" {
			t.Error(found, err)
		}
		sent.Kind = 3 - sent.Kind
		if _, err = readChange(sent, ""); err == nil {
			t.Error(sent)
		}
	}
	if found, err := readChange(&pb.BillingModeChange{WorkspaceId: workspace}, ""); err != nil || found.Kind != WorkspaceChange {
		t.Error(found, err)
	}
}

func TestFollowAsksForWhatWasCommittedSince(t *testing.T) {
	asked := []string{}
	client := scriptedClient(t, scripted{list: func(q *pb.ListBillingModeChangesRequest) (*pb.ListBillingModeChangesResponse, error) {
		asked = append(asked, q.GetPageToken())
		switch q.GetPageToken() {
		case "":
			return &pb.ListBillingModeChangesResponse{NextPageToken: "second", Changes: []*pb.BillingModeChange{{ChangeId: "2", WorkspaceId: workspace}}}, nil
		case "second":
			return &pb.ListBillingModeChangesResponse{FollowToken: "since", Changes: []*pb.BillingModeChange{{ChangeId: "1", WorkspaceId: workspace}}}, nil
		}
		answer := &pb.ListBillingModeChangesResponse{FollowToken: "since"}
		if len(asked) == 5 {
			answer = &pb.ListBillingModeChangesResponse{Changes: []*pb.BillingModeChange{{ChangeId: "3", WorkspaceId: workspace}}}
		}
		return answer, nil
	}})
	var found string
	var last error
	for change, err := range client.Follow(context.Background(), "", time.Millisecond) {
		found, last = found+change.ChangeID, err
	}
	requireReason(t, last, AnswerInvalid) // the fifth answer leads nowhere
	if found != "213" || !slices.Equal(asked, []string{"", "second", "since", "since", "since"}) {
		t.Error(found, asked)
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	client := scriptedClient(t, scripted{list: func(*pb.ListBillingModeChangesRequest) (*pb.ListBillingModeChangesResponse, error) {
		time.AfterFunc(20*time.Millisecond, cancel)
		return &pb.ListBillingModeChangesResponse{FollowToken: "since"}, nil
	}})
	var last error
	for _, err := range client.Follow(ctx, "", time.Hour) {
		last = err
	}
	requireReason(t, last, ServerUnreachable)
}

func TestAWriteNamesThePersonBehindTheProgram(t *testing.T) {
	var actor []string
	service := scripted{set: func(*pb.SetWorkspaceBillingModeRequest) (*pb.SetWorkspaceBillingModeResponse, error) {
		return &pb.SetWorkspaceBillingModeResponse{BillingMode: byok("1"), Previous: inherits()}, nil
	}}
	address := serve(t, service, grpc.UnaryInterceptor(func(ctx context.Context, q any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		actor = metadata.ValueFromIncomingContext(ctx, "x-billing-actor")
		return next(ctx, q)
	}))
	client := New(dial(t, address), Options{})
	for _, name := range []string{"ada@example.com", ""} {
		if _, err := client.Set(context.Background(), workspace, BYOK, SetOptions{Actor: name}); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(actor, ","); got != name {
			t.Error(got)
		}
	}
}

func TestAChangeOfAnotherWorkspaceIsAnError(t *testing.T) {
	const other = "7f1fc6a0-0000-4000-8000-00000000000b"
	for _, err := range scriptedClient(t, twoPages(nil, new(int))).Changes(context.Background(), other) {
		requireReason(t, err, AnswerInvalid)
	}
}

func TestEveryReasonOfTheContractIsAConstant(t *testing.T) {
	contract := matches(t, "../billingv1/billing_mode_service_grpc.pb.go", `(?m)^//\s+(?:[A-Z_]+\s+)?([A-Z]+_[A-Z_]+|OVERLOADED)(?:[ :]|$)`)
	clients := matches(t, "reasons.go", `Reason = "([A-Z_]+)"`)
	statuses := []string{"INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"}
	contract = slices.DeleteFunc(contract, func(found string) bool { return slices.Contains(statuses, found) })
	own := []string{"ANSWER_INVALID", "SERVER_REFUSED", "SERVER_UNREACHABLE"}
	for _, reason := range contract {
		if !slices.Contains(clients, reason) {
			t.Error(reason, "has no constant")
		}
	}
	for _, reason := range clients {
		if !slices.Contains(contract, reason) && !slices.Contains(own, reason) {
			t.Error(reason, "is not in the contract")
		}
	}
	if len(contract) < 21 {
		t.Error("the comment of the contract is not read as it is written:", contract)
	}
}

func matches(t *testing.T, path, pattern string) (found []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, match := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
		found = append(found, string(match[1]))
	}
	slices.Sort(found)
	return slices.Compact(found)
}
