// Package billing asks who pays for a workspace's language-model calls, and never takes as open what nobody opened.
//
// A decision has no error: when nobody answers, when the answer is a refusal and when it contradicts itself, it is the
// closed one, platform_managed, with the reason in Resolution.Error. Every call has a deadline.
package billing

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

// How much one call may ask about.
const (
	maxBatch      = 1000
	maxSecretKeys = 256
	maxEnvKeys    = 4096
)

// Options of a Client; the zero value is ready for use.
type Options struct {
	Timeout          time.Duration // of one decision, its retries included; 5 s when zero; of ResolveMany, of each thousand
	BlockedKeys      string        // the set of vendor names that the server blocks: Core, Agents (when empty) or Vendors
	ExtraBlockedKeys []string      // added to that set; give what the server's was extended by
	// OnClosed hears of every answer that this client closed by itself: count it, log it. Runs in the caller's goroutine.
	OnClosed func(method, reason string, cause error)
	// OnDifference hears of every answer of a server that blocks other vendor names than this client: count it, log it. What
	// either blocks is refused and stripped. Runs in the caller's goroutine.
	OnDifference func(method string, own, server Catalogue)
}

// Client asks a server over a connection of its caller's. Safe for use by several goroutines.
type Client struct {
	stub      pb.BillingModeServiceClient
	options   Options
	listed    names
	catalogue Catalogue
}

// New makes a client over a connection, which should have been dialled with DialOptions.
func New(connection grpc.ClientConnInterface, options Options) *Client {
	if options.Timeout <= 0 {
		options.Timeout = 5 * time.Second
	}
	if options.BlockedKeys == "" {
		options.BlockedKeys = Agents
	}
	own := listed(options.BlockedKeys, options.ExtraBlockedKeys)
	judges := Catalogue{options.BlockedKeys, catalogue.Version, own.digest()}
	return &Client{pb.NewBillingModeServiceClient(connection), options, own, judges}
}

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
	answer, reason := ask(ctx, c, method, request, c.stub.ResolveBillingMode)
	if reason != "" {
		return closedResolution(workspaceID, reason)
	}
	resolution, err := read(answer.GetResolution(), workspaceID, whatIf)
	if err != nil {
		return closedResolution(workspaceID, c.closed(method, AnswerInvalid, err))
	}
	return resolution
}

// ResolveMany is Resolve for any number of workspaces that exist: one answer for each id, in order. It asks for a thousand
// at a time, each time with a deadline of its own; an id that is none gets the closed answer, and the others are asked about.
func (c *Client) ResolveMany(ctx context.Context, workspaceIDs []string) []Resolution {
	const method = "BatchResolveBillingModes"
	resolutions := make([]Resolution, len(workspaceIDs))
	var askable []int
	for i, id := range workspaceIDs {
		if uuid.MatchString(id) {
			askable = append(askable, i)
			continue
		}
		reason := c.closed(method, ServerRefused, fmt.Errorf("workspace_ids[%d] is no UUID in its canonical form", i))
		resolutions[i] = closedResolution(id, reason)
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
	answer, reason := ask(ctx, c, method, request, c.stub.BatchResolveBillingModes)
	if reason == "" {
		if err := inOrder(answer.GetResolutions(), ids); err != nil {
			reason = c.closed(method, AnswerInvalid, err)
		}
	}
	resolutions := make([]Resolution, len(ids))
	for i, id := range ids {
		if reason != "" {
			resolutions[i] = closedResolution(id, reason)
			continue
		}
		var err error
		if resolutions[i], err = read(answer.GetResolutions()[i], id, nil); err != nil {
			resolutions[i] = closedResolution(id, c.closed(method, AnswerInvalid, err))
		}
	}
	return resolutions
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
	whole := SecretDecision{Allowed: len(keys) > 0, Verdicts: make([]Verdict, len(keys))}
	var askable []int
	for i, key := range keys {
		whole.Verdicts[i] = Verdict{key, BlockedPlatformManaged, "not a key's name (a letter, digit or _, then letters, digits, _ . or -)"}
		if canBeSent(key) {
			askable = append(askable, i)
		}
	}
	if len(askable) == 0 {
		reason := c.closed(method, ServerRefused, errors.New("secret_keys: name at least one key"))
		return c.closedSecrets(closedResolution(scope.GetWorkspaceId(), reason), keys, nil)
	}
	for batch := range slices.Chunk(askable, maxSecretKeys) {
		request := &pb.ValidateSecretWriteRequest{Scope: scope.GetScope(), SecretKeys: at(keys, batch)}
		decision := c.validateBatch(ctx, method, request)
		for i, position := range batch {
			whole.Verdicts[position] = decision.Verdicts[i]
		}
		whole.Resolution, whole.Catalogue = decisive(whole.Resolution, decision.Resolution), decision.Catalogue
	}
	allowed := func(v Verdict) bool { return v.Verdict == Allowed }
	whole.Allowed = !slices.ContainsFunc(whole.Verdicts, func(v Verdict) bool { return !allowed(v) })
	return whole
}

func (c *Client) validateBatch(ctx context.Context, method string, request *pb.ValidateSecretWriteRequest) SecretDecision {
	id, keys := request.GetWorkspaceId(), request.GetSecretKeys()
	answer, reason := ask(ctx, c, method, request, c.stub.ValidateSecretWrite)
	if reason != "" {
		return c.closedSecrets(closedResolution(id, reason), keys, nil)
	}
	decision, err := c.readSecrets(answer, id, keys)
	if err == nil {
		c.compare(method, decision.Catalogue)
	}
	if err == nil && lacksMode(decision) {
		// This client lists what the server does not: whether it may be stored depends on a mode that was not looked up.
		found, reason := ask(ctx, c, method, &pb.ResolveBillingModeRequest{WorkspaceId: id}, c.stub.ResolveBillingMode)
		if reason != "" {
			return c.closedSecrets(closedResolution(id, reason), keys, answer)
		}
		answer.Resolution = found.GetResolution()
		if answer.Resolution == nil {
			answer.Resolution = &pb.BillingModeResolution{}
		}
		decision, err = c.readSecrets(answer, id, keys)
	}
	if err != nil {
		return c.closedSecrets(closedResolution(id, c.closed(method, AnswerInvalid, err)), keys, answer)
	}
	return decision
}

// PlanProvisionEnv says what to strip from a container's environment, of which it takes the names, and what to set. Without
// names (nil) it strips every vendor key.
func (c *Client) PlanProvisionEnv(ctx context.Context, workspaceID string, envKeys []string) Plan {
	const method = "PlanProvisionEnv"
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	var askable []string
	for _, key := range envKeys {
		askable = append(askable, sendable(key)...)
	}
	var made Plan
	var strip, suspects []string
	for start := 0; start == 0 || start < len(askable); start += maxEnvKeys {
		batch := askable[start:min(start+maxEnvKeys, len(askable))]
		request := &pb.PlanProvisionEnvRequest{WorkspaceId: workspaceID, EnvKeys: batch}
		answer, reason := ask(ctx, c, method, request, c.stub.PlanProvisionEnv)
		strip, suspects = append(strip, answer.GetStripKeys()...), append(suspects, answer.GetSuspectKeys()...)
		plan, err := Plan{}, error(nil)
		if reason == "" {
			if plan, err = c.readPlan(answer, workspaceID); err != nil {
				reason = c.closed(method, AnswerInvalid, err)
			}
		}
		if reason != "" {
			return c.closedPlan(closedResolution(workspaceID, reason), envKeys, strip)
		}
		c.compare(method, plan.Catalogue)
		// The first answer decides; the others add what the server strips of further names.
		if start == 0 {
			made = plan
		}
		if made.Resolution.Mode != PlatformManaged {
			made.SuspectKeys = c.suspects(suspects, nil, envKeys)
			return made
		}
	}
	return c.stripping(made, strip, suspects, envKeys)
}

// compare tells of a server that blocks other names than this client.
func (c *Client) compare(method string, server Catalogue) {
	if server.Digest != c.catalogue.Digest && c.options.OnDifference != nil {
		c.options.OnDifference(method, c.catalogue, server)
	}
}

// at is the items at these positions.
func at(items []string, positions []int) []string {
	found := make([]string, len(positions))
	for i, position := range positions {
		found[i] = items[position]
	}
	return found
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

// ask makes one call with a deadline; a reason instead of an answer means that there is none.
func ask[Q, A any](
	ctx context.Context, c *Client, method string, request Q, call func(context.Context, Q, ...grpc.CallOption) (A, error),
) (answer A, reason string) {
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	answer, err := call(ctx, request)
	switch status.Code(err) {
	case codes.OK:
		return answer, ""
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return answer, c.closed(method, ServerUnreachable, err)
	default:
		return answer, c.closed(method, ServerRefused, err)
	}
}

func (c *Client) closed(method, reason string, cause error) string {
	if c.options.OnClosed != nil {
		c.options.OnClosed(method, reason, cause)
	}
	return reason
}
