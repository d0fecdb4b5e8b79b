package billing

import (
	"context"
	"errors"
	"time"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

// Summary is how many existing workspaces have which mode, as of one moment.
type Summary struct {
	Counts                []Count // by mode and source; together all workspaces
	Workspaces            int64   // all of them
	UnrecognisedOverrides int64   // those whose override is no mode, or cannot be read
	OrgDefault            Mode    // as used for the counts: PlatformManaged if it is unset or unrecognised
	ReadTime              time.Time
	Moves                 []Move // what the supposed org default would change; empty without one
}

// Count is how many workspaces have one mode by one rule.
type Count struct {
	Mode       Mode
	Source     Source
	Workspaces int64
}

// Move is how many workspaces would go from one mode to another.
type Move struct {
	From, To   Mode
	Workspaces int64
}

// Summarize counts the existing workspaces by mode and source. With an org default to suppose, it also counts what that would
// change; nil supposes none. There is no fallback: it fails with an *Error.
func (c *Client) Summarize(ctx context.Context, orgDefault *string) (Summary, error) {
	const method = "SummarizeBillingModes"
	request := &pb.SummarizeBillingModesRequest{OrgDefault: orgDefault}
	answer, err := administer(ctx, c, method, "", request, c.stub.SummarizeBillingModes)
	if err != nil {
		return Summary{}, err
	}
	summary, err := readSummary(answer, orgDefault)
	if err != nil {
		return Summary{}, invalidAnswer(method, err)
	}
	return summary, nil
}

func readSummary(p *pb.SummarizeBillingModesResponse, whatIf *string) (Summary, error) {
	s := Summary{
		Workspaces: p.GetWorkspaces(), UnrecognisedOverrides: p.GetUnrecognisedOverrides(), OrgDefault: modes[p.GetOrgDefault()],
	}
	var err error
	if s.ReadTime, err = readTime(p.GetReadTime()); err != nil {
		return s, err
	}
	var all, mayMove int64
	for _, each := range p.GetCounts() {
		count := Count{modes[each.GetMode()], sources[each.GetSource()], each.GetWorkspaces()}
		switch {
		case count.Mode == "" || count.Source == "":
			return s, errors.New("a mode or a source is none that this client knows")
		case count.Workspaces < 1:
			return s, errors.New("it counts no workspace")
		case count.Source == FromOrgDefault && count.Mode != s.OrgDefault:
			return s, errors.New("the org default does not say so")
		case count.Source == ConstantFallback && count.Mode != PlatformManaged:
			return s, errors.New("the constant fallback is open")
		}
		s.Counts = append(s.Counts, count)
		all += count.Workspaces
		if count.Source != FromOverride {
			mayMove += count.Workspaces
		}
	}
	if s.OrgDefault == "" || all != s.Workspaces {
		return s, errors.New("its numbers contradict each other")
	}
	for _, each := range p.GetMoves() {
		move := Move{modes[each.GetFromMode()], modes[each.GetToMode()], each.GetWorkspaces()}
		if whatIf == nil || move.From != s.OrgDefault || move.To != recognise(*whatIf) || move.Workspaces < 1 || move.Workspaces > mayMove {
			return s, errors.New("what would change does not follow from the org defaults")
		}
		s.Moves = append(s.Moves, move)
	}
	return s, nil
}
