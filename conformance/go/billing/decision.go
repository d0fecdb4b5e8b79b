package billing

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"

	pb "github.com/molecule-ai/billing-grpc/conformance/go/gen/molecule/billing/v1"
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
}

// Plan is what to strip from a container's environment and what to set in it; see Apply.
type Plan struct {
	Resolution            Resolution        `json:"resolution"`
	StripKeys             []string          `json:"strip_keys"`
	SetEnv                map[string]string `json:"set_env"`
	RouteViaPlatformProxy bool              `json:"route_via_platform_proxy"`
}

// Apply answers the environment that a container starts with: without the plan's names in any spelling, with its
// variables. The environment given stays as it is.
func Apply(plan Plan, env map[string]string) map[string]string {
	result := maps.Clone(env)
	if result == nil {
		result = map[string]string{}
	}
	strip, names := map[string]bool{}, map[string]bool{}
	for _, key := range plan.StripKeys {
		strip[key], names[normalise(key)] = true, true
	}
	// What is no name is in the empty one's place, and goes only where the plan spells it so.
	names[""] = false
	maps.DeleteFunc(result, func(key, _ string) bool { return strip[key] || names[normalise(key)] })
	maps.Copy(result, plan.SetEnv)
	return result
}

const (
	reservedPrefix = "MOLECULE_LLM_"
	maxSecretKeys  = 256
)

var (
	modes    = map[pb.BillingMode]string{1: PlatformManaged, 2: BYOK, 3: Disabled}
	sources  = map[pb.BillingModeSource]string{1: FromOverride, 2: FromOrgDefault, 3: ConstantFallback}
	verdicts = map[pb.SecretVerdict]string{1: Allowed, 2: BlockedPlatformManaged, 3: BlockedReserved}

	modeVariables = []string{"MOLECULE_LLM_BILLING_MODE", "MOLECULE_LLM_BILLING_MODE_RESOLVED"}
	blockedKeys   = strings.Fields(`AI_GATEWAY_API_KEY ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN ARCEEAI_API_KEY
		CLAUDE_CODE_OAUTH_TOKEN CODEX_AUTH_JSON DASHSCOPE_API_KEY DEEPSEEK_API_KEY GEMINI_API_KEY GLM_API_KEY
		HERMES_CUSTOM_API_KEY HERMES_CUSTOM_BASE_URL HF_TOKEN KIMI_API_KEY KIMI_CN_API_KEY MINIMAX_API_KEY
		MINIMAX_CN_API_KEY NOUS_API_KEY OPENAI_API_KEY OPENAI_BASE_URL OPENROUTER_API_KEY XAI_API_KEY ZAI_API_KEY`)

	uuid    = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	keyName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,255}$`)
)

func trim(key string) string {
	// The separators U+001C to U+001F are space to the server, and not to Go.
	return strings.TrimFunc(key, func(r rune) bool { return unicode.IsSpace(r) || 0x1c <= r && r <= 0x1f })
}

// normalise is the name that a key is looked up by; empty when it is no key's name.
func normalise(key string) string {
	if trimmed := trim(key); keyName.MatchString(trimmed) {
		return strings.ToUpper(trimmed)
	}
	return ""
}

func reserved(name string) bool { return strings.HasPrefix(name, reservedPrefix) }

func listed(extra []string) map[string]bool {
	names := map[string]bool{}
	for _, key := range slices.Concat(blockedKeys, extra) {
		if name := normalise(key); name != "" && !reserved(name) {
			names[name] = true
		}
	}
	return names
}

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

func (c *Client) readSecrets(a *pb.ValidateSecretWriteResponse, asked string, keys []string) (SecretDecision, error) {
	d := SecretDecision{Allowed: a.GetAllowed()}
	if a.GetResolution() != nil {
		r, err := read(a.GetResolution(), asked, nil)
		if err != nil {
			return d, err
		}
		d.Resolution = &r
	}
	if len(a.GetVerdicts()) != len(keys) {
		return d, errors.New("not one verdict for each key")
	}
	open := d.Resolution != nil && d.Resolution.Mode != PlatformManaged
	all := true
	for i, v := range a.GetVerdicts() {
		name, verdict := normalise(keys[i]), verdicts[v.GetVerdict()]
		switch {
		case v.GetSecretKey() != keys[i] || verdict == "":
			return d, fmt.Errorf("verdict %d is about another key, or none that this client knows", i)
		case verdict == Allowed && (name == "" || reserved(name) || c.listed[name] && !open):
			return d, fmt.Errorf("key %d is allowed and may not be", i)
		case verdict == BlockedPlatformManaged && open:
			return d, fmt.Errorf("key %d is blocked under an open mode", i)
		}
		all = all && verdict == Allowed
		d.Verdicts = append(d.Verdicts, Verdict{keys[i], verdict, v.GetMessage()})
	}
	if all != d.Allowed {
		return d, errors.New("the verdicts do not add up")
	}
	return d, nil
}

// closedSecrets blocks what depends on the mode. An outage blocks no other secret; of an invalid answer only what it
// plainly allows is allowed, and of more keys than any server judges at once none.
func (c *Client) closedSecrets(r Resolution, keys []string, a *pb.ValidateSecretWriteResponse) SecretDecision {
	allows := func(v *pb.SecretKeyVerdict) bool { return verdicts[v.GetVerdict()] == Allowed }
	blocks := func(v *pb.SecretKeyVerdict) bool { return !allows(v) }
	plain := len(a.GetVerdicts()) == len(keys) && (a.GetAllowed() || slices.ContainsFunc(a.GetVerdicts(), blocks))
	d := SecretDecision{Allowed: len(keys) > 0, Resolution: &r}
	for i, key := range keys {
		name, verdict := normalise(key), BlockedPlatformManaged
		switch {
		case reserved(name):
			verdict = BlockedReserved
		case name == "" || c.listed[name]:
		case a == nil && len(keys) <= maxSecretKeys, plain && a.Verdicts[i].GetSecretKey() == key && allows(a.Verdicts[i]):
			verdict = Allowed
		}
		d.Allowed = d.Allowed && verdict == Allowed
		d.Verdicts = append(d.Verdicts, Verdict{key, verdict, r.Reason})
	}
	return d
}

// toStrip is what a closed plan must strip: every listed name, and every spelling of one in the environment.
func (c *Client) toStrip(envKeys []string) map[string]bool {
	strip := maps.Clone(c.listed)
	for _, key := range envKeys {
		if c.listed[normalise(key)] {
			strip[key] = true
		}
	}
	return strip
}

func (c *Client) readPlan(a *pb.PlanProvisionEnvResponse, asked string, envKeys []string) (Plan, error) {
	r, err := read(a.GetResolution(), asked, nil)
	plan := Plan{r, a.GetStripKeys(), a.GetSetEnv(), a.GetRouteViaPlatformProxy()}
	if err != nil {
		return plan, err
	}
	for _, variable := range modeVariables {
		if plan.SetEnv[variable] != r.Mode {
			return plan, fmt.Errorf("%s is not the mode", variable)
		}
	}
	closed := r.Mode == PlatformManaged
	if plan.RouteViaPlatformProxy != closed || !closed && len(plan.StripKeys) > 0 {
		return plan, errors.New("it routes or strips as in another mode")
	}
	if slices.ContainsFunc(plan.StripKeys, func(key string) bool { return reserved(normalise(key)) }) {
		return plan, errors.New("it strips what the platform sets")
	}
	for key := range c.toStrip(envKeys) {
		if closed && !slices.Contains(plan.StripKeys, key) {
			return plan, errors.New("it leaves vendor keys")
		}
	}
	for key, value := range plan.SetEnv {
		if closed && c.listed[normalise(key)] {
			return plan, errors.New("it sets a vendor key")
		}
		// Joined to KEY=VALUE, such a name would set another variable.
		if key == "" || strings.ContainsAny(key, "=\x00") || strings.Contains(value, "\x00") {
			return plan, errors.New("it sets what can be no variable")
		}
	}
	return plan, nil
}

// closedPlan strips all it knows of, and what an invalid answer would have stripped.
func (c *Client) closedPlan(r Resolution, envKeys []string, a *pb.PlanProvisionEnvResponse) Plan {
	strip := c.toStrip(envKeys)
	for _, key := range a.GetStripKeys() {
		if name := normalise(key); name != "" && !reserved(name) {
			strip[key] = true
		}
	}
	set := map[string]string{}
	for _, variable := range modeVariables {
		set[variable] = r.Mode
	}
	return Plan{r, slices.Sorted(maps.Keys(strip)), set, true}
}
