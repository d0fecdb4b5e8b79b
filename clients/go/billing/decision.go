package billing

import (
	"errors"
	"regexp"
	"slices"
	"strings"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

// The modes, sources and verdicts in the contract's words, and why a client closed an answer by itself.
const (
	PlatformManaged = "platform_managed"
	BYOK            = "byok"
	Disabled        = "disabled"

	FromOverride     = "workspace_override"
	FromOrgDefault   = "org_default"
	ConstantFallback = "constant_fallback"

	Allowed                = "allowed"
	BlockedPlatformManaged = "blocked_platform_managed"
	BlockedReserved        = "blocked_reserved"

	ServerUnreachable = "SERVER_UNREACHABLE"
	ServerRefused     = "SERVER_REFUSED"
	AnswerInvalid     = "ANSWER_INVALID"
)

// Resolution is who pays for a workspace, and what led to that. Error is empty, or why the answer is the closed one: a
// reason of the server's, or one of the three above.
type Resolution struct {
	WorkspaceID       string  `json:"workspace_id"`
	Mode              string  `json:"mode"`
	Source            string  `json:"source"`
	WorkspaceOverride *string `json:"workspace_override"`
	OrgDefault        string  `json:"org_default"`
	Reason            string  `json:"reason"` // a sentence for people
	Error             string  `json:"error"`
}

// Verdict is whether one secret may be stored; Message is for people.
type Verdict struct {
	SecretKey string `json:"secret_key"`
	Verdict   string `json:"verdict"`
	Message   string `json:"message"`
}

// SecretDecision is whether secrets may be stored: all of them, and each. Resolution is nil where no key needed a mode.
type SecretDecision struct {
	Allowed    bool        `json:"allowed"`
	Verdicts   []Verdict   `json:"verdicts"`
	Resolution *Resolution `json:"resolution"`
	Catalogue  Catalogue   `json:"catalogue"`
}

// Catalogue is which list of vendor names judged an answer: the set, the date of its last change, and what identifies its
// names with those that configuration adds. It is zero if an older server does not say it.
type Catalogue struct {
	Set     string `json:"set"`
	Version string `json:"version"`
	Digest  string `json:"digest"`
}

// Plan is what to strip from a container's environment and what to set in it; see Apply. SuspectKeys look like a vendor's
// and are in no set; they stay.
type Plan struct {
	Resolution            Resolution        `json:"resolution"`
	StripKeys             []string          `json:"strip_keys"`
	SetEnv                map[string]string `json:"set_env"`
	RouteViaPlatformProxy bool              `json:"route_via_platform_proxy"`
	Catalogue             Catalogue         `json:"catalogue"`
	SuspectKeys           []string          `json:"suspect_keys"`

	blocked names // what Apply removes under platform_managed; nil for the default set of this release
}

var (
	modes    = map[pb.BillingMode]string{1: PlatformManaged, 2: BYOK, 3: Disabled}
	sources  = map[pb.BillingModeSource]string{1: FromOverride, 2: FromOrgDefault, 3: ConstantFallback}
	verdicts = map[pb.SecretVerdict]string{1: Allowed, 2: BlockedPlatformManaged, 3: BlockedReserved}
	uuid     = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
)

// recognise is the mode that an org default names; only ASCII is trimmed and lower-cased, as the server does it.
func recognise(text string) string {
	lower := func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}
	if mode := strings.Map(lower, strings.Trim(text, " \t\n\r\v\f")); mode == BYOK || mode == Disabled {
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
		modes[p.GetOrgDefault()], p.GetReason(), p.GetError().GetReason(),
	}
	switch {
	case r.Mode == "" || r.Source == "" || r.OrgDefault == "":
		return r, errors.New("a mode or a source is none that this client knows")
	case r.WorkspaceID != strings.ToLower(asked):
		return r, errors.New("it is about another workspace")
	case p.Error != nil && (r.Source != ConstantFallback || r.Error == ""):
		return r, errors.New("an error stands beside a decision")
	case r.Source == ConstantFallback && r.Mode != PlatformManaged:
		return r, errors.New("the constant fallback is open")
	case r.Source == FromOverride && (asked == "" || r.WorkspaceOverride == nil || *r.WorkspaceOverride != r.Mode):
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

func closedResolution(asked, reason string) Resolution {
	if !uuid.MatchString(asked) {
		asked = ""
	}
	why := "No answer could be used (" + reason + "): defaulting to platform_managed for safety."
	return Resolution{strings.ToLower(asked), PlatformManaged, ConstantFallback, nil, PlatformManaged, why, reason}
}

func inOrder(answer []*pb.BillingModeResolution, asked []string) error {
	same := func(p *pb.BillingModeResolution, id string) bool {
		return strings.ToLower(p.GetWorkspaceId()) == strings.ToLower(id)
	}
	if !slices.EqualFunc(answer, asked, same) {
		return errors.New("not one resolution for each workspace, in order")
	}
	return nil
}
