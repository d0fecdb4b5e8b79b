// Package billing asks who pays for a workspace's language-model calls, and never takes as open what nobody opened.
//
// A decision has no error: when nobody answers, when the answer is a refusal and when it contradicts itself, it is the
// closed one, platform_managed, with the reason in Resolution.Error. Every call has a deadline.
package billing

import (
	"context"
	_ "embed"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/molecule-ai/billing-grpc/conformance/go/gen/molecule/billing/v1"
)

//go:embed service_config.json
var serviceConfig string

// DialOptions give a connection the retries that ship with the contract, and bring it back within a second or so: by
// default gRPC waits for up to two minutes, and every decision would stay closed for as long.
func DialOptions() []grpc.DialOption {
	reconnect := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}
	return []grpc.DialOption{
		grpc.WithDefaultServiceConfig(serviceConfig), grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 2 * time.Second}),
	}
}

// Options of a Client; the zero value is ready for use.
type Options struct {
	Timeout          time.Duration // of one decision, its retries included; 5 s when zero, and never longer
	ExtraBlockedKeys []string      // added to the vendor keys; give what the server's list was extended by
	// OnClosed hears of every answer that this client closed by itself: count it, log it. Runs in the caller's goroutine.
	OnClosed func(method, reason string, cause error)
}

// Client asks a server over a connection of its caller's. Safe for use by several goroutines.
type Client struct {
	stub    pb.BillingModeServiceClient
	options Options
	listed  map[string]bool
}

// New makes a client over a connection, which should have been dialled with DialOptions.
func New(connection grpc.ClientConnInterface, options Options) *Client {
	if options.Timeout <= 0 {
		options.Timeout = 5 * time.Second
	}
	return &Client{pb.NewBillingModeServiceClient(connection), options, listed(options.ExtraBlockedKeys)}
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

// ResolveMany is Resolve for 1 to 1000 workspaces that exist: one answer for each id, in order.
func (c *Client) ResolveMany(ctx context.Context, workspaceIDs []string) []Resolution {
	const method = "BatchResolveBillingModes"
	request := &pb.BatchResolveBillingModesRequest{WorkspaceIds: workspaceIDs}
	answer, reason := ask(ctx, c, method, request, c.stub.BatchResolveBillingModes)
	if reason == "" {
		if err := inOrder(answer.GetResolutions(), workspaceIDs); err != nil {
			reason = c.closed(method, AnswerInvalid, err)
		}
	}
	resolutions := make([]Resolution, len(workspaceIDs))
	for i, id := range workspaceIDs {
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

// ValidateSecretWrite says whether secrets may be stored in a workspace under these names; never send a value.
func (c *Client) ValidateSecretWrite(ctx context.Context, workspaceID string, keys []string) SecretDecision {
	scope := &pb.ValidateSecretWriteRequest_WorkspaceId{WorkspaceId: workspaceID}
	return c.validate(ctx, &pb.ValidateSecretWriteRequest{Scope: scope, SecretKeys: keys})
}

// ValidateOrgWideSecretWrite is ValidateSecretWrite for secrets of the whole organisation.
func (c *Client) ValidateOrgWideSecretWrite(ctx context.Context, keys []string) SecretDecision {
	scope := &pb.ValidateSecretWriteRequest_OrgWide{OrgWide: &pb.OrgWide{}}
	return c.validate(ctx, &pb.ValidateSecretWriteRequest{Scope: scope, SecretKeys: keys})
}

func (c *Client) validate(ctx context.Context, request *pb.ValidateSecretWriteRequest) SecretDecision {
	const method = "ValidateSecretWrite"
	id, keys := request.GetWorkspaceId(), request.GetSecretKeys()
	answer, reason := ask(ctx, c, method, request, c.stub.ValidateSecretWrite)
	if reason != "" {
		return c.closedSecrets(closedResolution(id, reason), keys, nil)
	}
	decision, err := c.readSecrets(answer, id, keys)
	if err != nil {
		return c.closedSecrets(closedResolution(id, c.closed(method, AnswerInvalid, err)), keys, answer)
	}
	return decision
}

// PlanProvisionEnv says what to strip from a container's environment, of which it takes the names, and what to set.
func (c *Client) PlanProvisionEnv(ctx context.Context, workspaceID string, envKeys []string) Plan {
	const method = "PlanProvisionEnv"
	// A name that is not even UTF-8 cannot be sent, and must not close the plan.
	envKeys = slices.DeleteFunc(slices.Clone(envKeys), func(key string) bool { return normalise(key) == "" })
	request := &pb.PlanProvisionEnvRequest{WorkspaceId: workspaceID, EnvKeys: envKeys}
	answer, reason := ask(ctx, c, method, request, c.stub.PlanProvisionEnv)
	if reason != "" {
		return c.closedPlan(closedResolution(workspaceID, reason), envKeys, nil)
	}
	plan, err := c.readPlan(answer, workspaceID, envKeys)
	if err != nil {
		return c.closedPlan(closedResolution(workspaceID, c.closed(method, AnswerInvalid, err)), envKeys, answer)
	}
	return plan
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
