package billing

import (
	"context"
	"errors"
	"fmt"
	"slices"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

// KeyVerdict is whether one secret may be stored.
type KeyVerdict struct {
	SecretKey string  `json:"secret_key"` // as it was given
	Verdict   Verdict `json:"verdict"`
	Message   string  `json:"message"` // for people: when blocked, what to do about it
}

// SecretDecision is whether secrets may be stored: all of them, and each. Resolution is nil where no key needed a mode.
type SecretDecision struct {
	Allowed    bool         `json:"allowed"`
	Verdicts   []KeyVerdict `json:"verdicts"`
	Resolution *Resolution  `json:"resolution"`
	Catalogue  Catalogue    `json:"catalogue"`
}

// ValidateSecretWrite says whether secrets may be stored in a workspace under these names; never send a value. What is no
// key's name is refused by itself.
func (c *Client) ValidateSecretWrite(ctx context.Context, workspaceID string, keys []string) SecretDecision {
	scope := &pb.ValidateSecretWriteRequest_WorkspaceId{WorkspaceId: workspaceID}
	return c.validate(ctx, &pb.ValidateSecretWriteRequest{Scope: scope}, keys)
}

// ValidateOrgWideSecretWrite is ValidateSecretWrite for secrets of the whole organisation.
func (c *Client) ValidateOrgWideSecretWrite(ctx context.Context, keys []string) SecretDecision {
	scope := &pb.ValidateSecretWriteRequest_OrgWide{OrgWide: &pb.OrgWide{}}
	return c.validate(ctx, &pb.ValidateSecretWriteRequest{Scope: scope}, keys)
}

func (c *Client) validate(ctx context.Context, scope *pb.ValidateSecretWriteRequest, keys []string) SecretDecision {
	const method = "ValidateSecretWrite"
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	whole := SecretDecision{Allowed: len(keys) > 0, Verdicts: make([]KeyVerdict, len(keys))}
	var askable []int
	for i, key := range keys {
		whole.Verdicts[i] = KeyVerdict{key, BlockedPlatformManaged, "not a key's name (a letter, digit or _, then letters, digits, _ . or -)"}
		if canBeSent(key) {
			askable = append(askable, i)
		}
	}
	if len(askable) == 0 {
		reason := c.fallback(ctx, Fallback{method, ServerRefused, 1, errors.New("secret_keys: name at least one key")})
		return c.fallbackSecrets(fallbackResolution(scope.GetWorkspaceId(), reason), keys, nil)
	}
	for batch := range slices.Chunk(askable, maxSecretKeys) {
		request := &pb.ValidateSecretWriteRequest{Scope: scope.GetScope(), SecretKeys: at(keys, batch)}
		decision := c.validateBatch(ctx, method, request)
		for i, position := range batch {
			whole.Verdicts[position] = decision.Verdicts[i]
		}
		whole.Resolution, whole.Catalogue = decisive(whole.Resolution, decision.Resolution), decision.Catalogue
	}
	allowed := func(v KeyVerdict) bool { return v.Verdict == Allowed }
	whole.Allowed = !slices.ContainsFunc(whole.Verdicts, func(v KeyVerdict) bool { return !allowed(v) })
	return whole
}

func (c *Client) validateBatch(ctx context.Context, method string, request *pb.ValidateSecretWriteRequest) SecretDecision {
	id, keys := request.GetWorkspaceId(), request.GetSecretKeys()
	answer, reason := ask(ctx, c, method, 1, request, c.stub.ValidateSecretWrite)
	if reason != "" {
		return c.fallbackSecrets(fallbackResolution(id, reason), keys, nil)
	}
	decision, err := c.readSecrets(answer, id, keys)
	if err == nil {
		c.compare(ctx, method, decision.Catalogue)
	}
	if err == nil && lacksMode(decision) {
		// This client lists what the server does not: whether it may be stored depends on a mode that was not looked up.
		found, reason := ask(ctx, c, method, 1, &pb.ResolveBillingModeRequest{WorkspaceId: id}, c.stub.ResolveBillingMode)
		if reason != "" {
			return c.fallbackSecrets(fallbackResolution(id, reason), keys, answer)
		}
		answer.Resolution = found.GetResolution()
		if answer.Resolution == nil {
			answer.Resolution = &pb.BillingModeResolution{}
		}
		decision, err = c.readSecrets(answer, id, keys)
	}
	if err != nil {
		return c.fallbackSecrets(fallbackResolution(id, c.invalid(ctx, method, 1, err)), keys, answer)
	}
	return decision
}

// decisive is the resolution that explains a decision made in several calls, between which the mode may have changed: the
// one with an error, or else the closed one.
func decisive(one, other *Resolution) *Resolution {
	switch {
	case one == nil || other != nil && one.Error == "" && (other.Error != "" || one.Mode != PlatformManaged):
		return other
	default:
		return one
	}
}

// readSecrets takes the verdicts as they were sent, or says why they cannot be true. What the client lists and the server
// does not is blocked as well, unless the mode is open; see lacksMode.
func (c *Client) readSecrets(a *pb.ValidateSecretWriteResponse, asked string, keys []string) (SecretDecision, error) {
	d := SecretDecision{Allowed: true, Catalogue: readCatalogueOf(a.GetCatalogue())}
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
	closed := d.Resolution != nil && d.Resolution.Mode == PlatformManaged
	open := d.Resolution != nil && !closed
	all := true
	for i, v := range a.GetVerdicts() {
		name, verdict, message := normalise(keys[i]), verdicts[v.GetVerdict()], v.GetMessage()
		switch {
		case v.GetSecretKey() != keys[i] || verdict == "":
			return d, fmt.Errorf("verdict %d is about another key, or none that this client knows", i)
		case name == "" || reserved(name) && verdict != BlockedReserved:
			return d, fmt.Errorf("key %d is reserved or no name, and the verdict is another", i)
		case verdict == BlockedPlatformManaged && !closed:
			return d, fmt.Errorf("key %d is blocked by a mode that is not there", i)
		}
		all = all && verdict == Allowed
		if verdict == Allowed && c.listed.lists(name) && !open {
			verdict, message = BlockedPlatformManaged, "a vendor key to this client: the mode is not known to be open"
		}
		d.Allowed = d.Allowed && verdict == Allowed
		d.Verdicts = append(d.Verdicts, KeyVerdict{keys[i], verdict, message})
	}
	if all != a.GetAllowed() {
		return d, errors.New("the verdicts do not add up")
	}
	return d, nil
}

// lacksMode says whether a key is blocked for want of a mode alone: the client lists it, and the server does not.
func lacksMode(d SecretDecision) bool {
	blocked := func(v KeyVerdict) bool { return v.Verdict == BlockedPlatformManaged }
	return d.Resolution == nil && slices.ContainsFunc(d.Verdicts, blocked)
}

// fallbackSecrets blocks what depends on the mode. An outage blocks no other secret; of an invalid answer only what it
// plainly allows is allowed.
func (c *Client) fallbackSecrets(r Resolution, keys []string, a *pb.ValidateSecretWriteResponse) SecretDecision {
	allows := func(v *pb.SecretKeyVerdict) bool { return verdicts[v.GetVerdict()] == Allowed }
	blocks := func(v *pb.SecretKeyVerdict) bool { return !allows(v) }
	plain := len(a.GetVerdicts()) == len(keys) && (a.GetAllowed() || slices.ContainsFunc(a.GetVerdicts(), blocks))
	d := SecretDecision{Allowed: len(keys) > 0, Resolution: &r, Catalogue: c.catalogue}
	for i, key := range keys {
		name, verdict := normalise(key), BlockedPlatformManaged
		switch {
		case reserved(name):
			verdict = BlockedReserved
		case name == "" || c.listed.lists(name):
		case a == nil, plain && a.Verdicts[i].GetSecretKey() == key && allows(a.Verdicts[i]):
			verdict = Allowed
		}
		d.Allowed = d.Allowed && verdict == Allowed
		d.Verdicts = append(d.Verdicts, KeyVerdict{key, verdict, r.Reason})
	}
	return d
}
