package billing

import (
	"context"
	"testing"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

// counted is what a server says of five workspaces under the org default byok, supposing disabled.
func counted() *pb.SummarizeBillingModesResponse {
	return &pb.SummarizeBillingModesResponse{
		Workspaces: 5, UnrecognisedOverrides: 1, OrgDefault: BYOK.Enum(),
		Counts: []*pb.BillingModeCount{
			{Mode: PlatformManaged.Enum(), Source: ConstantFallback.enum(), Workspaces: 1},
			{Mode: BYOK.Enum(), Source: FromOrgDefault.enum(), Workspaces: 3},
			{Mode: Disabled.Enum(), Source: FromOverride.enum(), Workspaces: 1},
		},
		Moves: []*pb.BillingModeMove{{FromMode: BYOK.Enum(), ToMode: Disabled.Enum(), Workspaces: 3}},
	}
}

func summarize(t *testing.T, orgDefault *string, answer *pb.SummarizeBillingModesResponse) (Summary, error) {
	t.Helper()
	client := scriptedClient(t, scripted{sum: func(*pb.SummarizeBillingModesRequest) (*pb.SummarizeBillingModesResponse, error) {
		return answer, nil
	}})
	return client.Summarize(context.Background(), orgDefault)
}

func TestASummaryGivesWhatTheServerCounted(t *testing.T) {
	supposed := "disabled"
	summary, err := summarize(t, &supposed, counted())
	if err != nil || summary.Workspaces != 5 || len(summary.Counts) != 3 || summary.OrgDefault != BYOK || summary.UnrecognisedOverrides != 1 {
		t.Fatal(summary, err)
	}
	if len(summary.Moves) != 1 || summary.Moves[0] != (Move{BYOK, Disabled, 3}) {
		t.Error(summary.Moves)
	}
}

func TestASummaryThatCannotBeTrueIsAnError(t *testing.T) {
	for name, spoil := range map[string]func(*pb.SummarizeBillingModesResponse){
		"another sum":              func(p *pb.SummarizeBillingModesResponse) { p.Workspaces = 6 },
		"no org default":           func(p *pb.SummarizeBillingModesResponse) { p.OrgDefault = 0 },
		"an unknown mode":          func(p *pb.SummarizeBillingModesResponse) { p.Counts[2].Mode = 9 },
		"an unknown source":        func(p *pb.SummarizeBillingModesResponse) { p.Counts[2].Source = 9 },
		"nobody":                   func(p *pb.SummarizeBillingModesResponse) { p.Counts[0].Workspaces, p.Counts[1].Workspaces = 0, 4 },
		"an open fallback":         func(p *pb.SummarizeBillingModesResponse) { p.Counts[0].Mode = BYOK.Enum() },
		"another inherited mode":   func(p *pb.SummarizeBillingModesResponse) { p.Counts[1].Mode = Disabled.Enum() },
		"a move from another mode": func(p *pb.SummarizeBillingModesResponse) { p.Moves[0].FromMode = PlatformManaged.Enum() },
		"a move to another mode":   func(p *pb.SummarizeBillingModesResponse) { p.Moves[0].ToMode = PlatformManaged.Enum() },
		"a move of too many":       func(p *pb.SummarizeBillingModesResponse) { p.Moves[0].Workspaces = 5 },
		"a move of nobody":         func(p *pb.SummarizeBillingModesResponse) { p.Moves[0].Workspaces = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			supposed, answer := "disabled", counted()
			spoil(answer)
			_, err := summarize(t, &supposed, answer)
			requireReason(t, err, AnswerInvalid)
		})
	}
	_, err := summarize(t, nil, counted())
	requireReason(t, err, AnswerInvalid)
}
