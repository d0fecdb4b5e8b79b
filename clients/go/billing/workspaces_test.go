package billing

import (
	"context"
	"fmt"
	"testing"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

// inList is a workspace as a server would list it under the org default byok.
func inList(number int, override *string) *pb.WorkspaceBillingMode {
	resolution := &pb.BillingModeResolution{
		WorkspaceId: fmt.Sprintf("7f1fc6a0-0000-4000-8000-%012d", number), OrgDefault: BYOK.Enum(), WorkspaceOverride: override,
		ResolvedMode: PlatformManaged.Enum(), Source: ConstantFallback.enum(),
	}
	if override == nil {
		resolution.ResolvedMode, resolution.Source = BYOK.Enum(), FromOrgDefault.enum()
	} else if mode := Mode(*override); mode.Enum() != 0 {
		resolution.ResolvedMode, resolution.Source = mode.Enum(), FromOverride.enum()
	}
	return &pb.WorkspaceBillingMode{Resolution: resolution, Etag: "1", Name: fmt.Sprint("number ", number)}
}

func collect(t *testing.T, filter Filter, answers ...[]*pb.WorkspaceBillingMode) ([]WorkspaceBillingMode, error) {
	t.Helper()
	page := 0
	client := scriptedClient(t, scripted{all: func(q *pb.ListWorkspaceBillingModesRequest) (*pb.ListWorkspaceBillingModesResponse, error) {
		answer := &pb.ListWorkspaceBillingModesResponse{BillingModes: answers[page]}
		if page++; page < len(answers) {
			answer.NextPageToken = fmt.Sprint(page)
		}
		return answer, nil
	}})
	var found []WorkspaceBillingMode
	for each, err := range client.Workspaces(context.Background(), filter) {
		if err != nil {
			return found, err
		}
		found = append(found, each)
	}
	return found, nil
}

func TestWorkspacesFetchesEveryPage(t *testing.T) {
	byok, corrupt := "byok", "BYOK"
	found, err := collect(t, Filter{}, []*pb.WorkspaceBillingMode{inList(1, nil), inList(2, &byok)}, nil, []*pb.WorkspaceBillingMode{inList(3, &corrupt)})
	if err != nil || len(found) != 3 || found[2].Name != "number 3" || found[2].Resolution.Mode != PlatformManaged {
		t.Error(found, err)
	}
}

func TestAListThatCannotBeTrueIsAnError(t *testing.T) {
	byok, corrupt, supposed := "byok", "BYOK", "disabled"
	for name, each := range map[string]struct {
		filter Filter
		answer []*pb.WorkspaceBillingMode
	}{
		"out of order":           {Filter{}, []*pb.WorkspaceBillingMode{inList(2, nil), inList(1, nil)}},
		"twice":                  {Filter{}, []*pb.WorkspaceBillingMode{inList(1, nil), inList(1, nil)}},
		"no id":                  {Filter{}, []*pb.WorkspaceBillingMode{{}}},
		"another mode":           {Filter{Mode: Disabled}, []*pb.WorkspaceBillingMode{inList(1, &byok)}},
		"another source":         {Filter{Source: FromOrgDefault}, []*pb.WorkspaceBillingMode{inList(1, &byok)}},
		"no override":            {Filter{Override: WithOverride}, []*pb.WorkspaceBillingMode{inList(1, nil)}},
		"a recognised override":  {Filter{Override: UnrecognisedOverride}, []*pb.WorkspaceBillingMode{inList(1, &corrupt), inList(2, &byok)}},
		"another org default":    {Filter{OrgDefault: &supposed}, []*pb.WorkspaceBillingMode{inList(1, nil)}},
		"a contradiction inside": {Filter{}, []*pb.WorkspaceBillingMode{{Resolution: &pb.BillingModeResolution{WorkspaceId: workspace}}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := collect(t, each.filter, each.answer)
			requireReason(t, err, AnswerInvalid)
		})
	}
}

func TestAFilterThatIsNoConstantIsNotSentAsNoFilter(t *testing.T) {
	for _, filter := range []Filter{{Mode: "BYOK"}, {Source: "override"}} {
		_, err := collect(t, filter)
		requireReason(t, err, FilterInvalid)
	}
}
