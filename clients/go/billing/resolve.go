package billing

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

// Resolution is who pays for a workspace, and what led to that.
type Resolution struct {
	WorkspaceID       string  `json:"workspace_id"` // in lower case
	Mode              Mode    `json:"mode"`
	Source            Source  `json:"source"`
	WorkspaceOverride *string `json:"workspace_override"` // the stored text, also a corrupt one; nil if there is none
	OrgDefault        Mode    `json:"org_default"`        // as it was used
	Reason            string  `json:"reason"`             // a sentence for people
	// Error is empty, or why the answer is the fallback: a reason of the database if the server made it, or else
	// ServerUnreachable, ServerRefused or AnswerInvalid.
	Error Reason `json:"error"`
}

var uuid = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// Resolve says who pays for a workspace; an empty id asks for one that does not exist yet.
func (c *Client) Resolve(ctx context.Context, workspaceID string) Resolution {
	return c.resolve(ctx, workspaceID, nil)
}

// ResolveWhatIf is Resolve with a supposed default of the organisation in place of the server's.
func (c *Client) ResolveWhatIf(ctx context.Context, workspaceID, orgDefault string) Resolution {
	return c.resolve(ctx, workspaceID, &orgDefault)
}

func (c *Client) resolve(ctx context.Context, workspaceID string, whatIf *string) Resolution {
	const method = "ResolveBillingMode"
	request := &pb.ResolveBillingModeRequest{WorkspaceId: workspaceID, OrgDefault: whatIf}
	answer, reason := ask(ctx, c, method, 1, request, c.stub.ResolveBillingMode)
	if reason != "" {
		return fallbackResolution(workspaceID, reason)
	}
	resolution, err := read(answer.GetResolution(), workspaceID, whatIf)
	if err != nil {
		return fallbackResolution(workspaceID, c.invalid(ctx, method, 1, err))
	}
	return resolution
}

// ResolveMany is Resolve for any number of workspaces that exist: one answer for each id, in order. It asks for a thousand
// at a time, each time with a deadline of its own. A malformed id gets the fallback, and the others are asked about.
func (c *Client) ResolveMany(ctx context.Context, workspaceIDs []string) []Resolution {
	const method = "BatchResolveBillingModes"
	resolutions := make([]Resolution, len(workspaceIDs))
	var askable []int
	for i, id := range workspaceIDs {
		if uuid.MatchString(id) {
			askable = append(askable, i)
			continue
		}
		resolutions[i] = fallbackResolution(id, ServerRefused)
	}
	if malformed := len(workspaceIDs) - len(askable); malformed > 0 {
		first := slices.IndexFunc(workspaceIDs, func(id string) bool { return !uuid.MatchString(id) })
		err := fmt.Errorf("workspace_ids[%d] is no UUID in its canonical form", first)
		c.fallback(ctx, Fallback{method, ServerRefused, malformed, err})
	}
	for batch := range slices.Chunk(askable, maxBatch) {
		answered := c.resolveBatch(ctx, method, at(workspaceIDs, batch))
		for i, position := range batch {
			resolutions[position] = answered[i]
		}
	}
	return resolutions
}

func (c *Client) resolveBatch(ctx context.Context, method string, ids []string) []Resolution {
	request := &pb.BatchResolveBillingModesRequest{WorkspaceIds: ids}
	answer, reason := ask(ctx, c, method, len(ids), request, c.stub.BatchResolveBillingModes)
	if reason == "" {
		if err := inOrder(answer.GetResolutions(), ids); err != nil {
			reason = c.invalid(ctx, method, len(ids), err)
		}
	}
	resolutions := make([]Resolution, len(ids))
	var wrong []error
	for i, id := range ids {
		if reason != "" {
			resolutions[i] = fallbackResolution(id, reason)
			continue
		}
		var err error
		if resolutions[i], err = read(answer.GetResolutions()[i], id, nil); err != nil {
			resolutions[i] = fallbackResolution(id, AnswerInvalid)
			wrong = append(wrong, fmt.Errorf("resolutions[%d]: %w", i, err))
		}
	}
	if len(wrong) > 0 {
		c.invalid(ctx, method, len(wrong), wrong[0])
	}
	return resolutions
}

// recognise is the mode that an org default names; only ASCII is trimmed and lower-cased, as the server does it.
func recognise(text string) Mode {
	lower := func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}
	if mode := Mode(strings.Map(lower, strings.Trim(text, " \t\n\r\v\f"))); mode.Open() {
		return mode
	}
	return PlatformManaged
}

// read takes a resolution as it was sent, or says why it cannot be true.
func read(p *pb.BillingModeResolution, asked string, whatIf *string) (Resolution, error) {
	if p == nil {
		return Resolution{}, errors.New("there is no resolution")
	}
	r := Resolution{
		strings.ToLower(p.GetWorkspaceId()), modes[p.GetResolvedMode()], sources[p.GetSource()], p.WorkspaceOverride,
		modes[p.GetOrgDefault()], p.GetReason(), Reason(p.GetError().GetReason()),
	}
	switch {
	case r.Mode == "" || r.Source == "" || r.OrgDefault == "":
		return r, errors.New("a mode or a source is none that this client knows")
	case !sameID(r.WorkspaceID, asked):
		return r, errors.New("it is about another workspace")
	case p.Error != nil && (r.Source != ConstantFallback || r.Error == ""):
		return r, errors.New("an error stands beside a decision")
	case r.Source == ConstantFallback && r.Mode != PlatformManaged:
		return r, errors.New("the constant fallback is open")
	case r.Source == FromOverride && (asked == "" || r.WorkspaceOverride == nil || Mode(*r.WorkspaceOverride) != r.Mode):
		return r, errors.New("the override does not say so")
	case r.Source == FromOrgDefault && r.OrgDefault != r.Mode:
		return r, errors.New("the org default does not say so")
	case r.Source == FromOrgDefault && r.WorkspaceOverride != nil && r.Mode != PlatformManaged:
		return r, errors.New("the org default opens what has an override")
	case whatIf != nil && r.OrgDefault != recognise(*whatIf):
		return r, errors.New("the org default is not the supposed one")
	}
	return r, nil
}

func fallbackResolution(asked string, reason Reason) Resolution {
	if !uuid.MatchString(asked) {
		asked = ""
	}
	why := "No answer could be used (" + string(reason) + "): defaulting to platform_managed for safety."
	return Resolution{strings.ToLower(asked), PlatformManaged, ConstantFallback, nil, PlatformManaged, why, reason}
}

func inOrder(answer []*pb.BillingModeResolution, asked []string) error {
	same := func(p *pb.BillingModeResolution, id string) bool {
		return sameID(p.GetWorkspaceId(), id)
	}
	if !slices.EqualFunc(answer, asked, same) {
		return errors.New("not one resolution for each workspace, in order")
	}
	return nil
}

func sameID(one, other string) bool { return strings.ToLower(one) == strings.ToLower(other) }
