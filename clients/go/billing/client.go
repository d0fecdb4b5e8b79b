// Package billing asks who pays for a workspace's language-model calls, and is default-closed.
//
// A decision (Resolve, ResolveMany, ValidateSecretWrite, PlanProvisionEnv) has no error. If the server does not answer,
// refuses the call or contradicts itself, the client makes the fallback: platform_managed, with the reason in
// Resolution.Error. Administration (Get, Set, Inherit, Changes) has no fallback and fails with an *Error. Every call has a
// deadline.
package billing

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

// How much one call may ask about.
const (
	maxBatch      = 1000
	maxSecretKeys = 256
	maxEnvKeys    = 4096
)

// Options of a Client; the zero value is ready for use. The hooks run in the caller's goroutine.
type Options struct {
	Timeout          time.Duration // of a call, its retries included, and of a decision of several calls; 5 s if zero
	BlockedKeys      string        // the set of vendor names that the server blocks: Core, Agents (if empty) or Vendors
	ExtraBlockedKeys []string      // added to that set; give what the server's was extended by
	Logger           *slog.Logger  // hears of every fallback as a WARN; slog.Default() if nil
	// OnFallback hears of every fallback that this client makes, after the log: count it.
	OnFallback func(context.Context, Fallback)
	// OnDifference hears of every answer of a server that blocks other vendor names than this client: count it. What either
	// blocks is refused and stripped.
	OnDifference func(ctx context.Context, method string, own, server Catalogue)
}

// Fallback is why this client answered by itself.
type Fallback struct {
	Method    string // as in ResolveBillingMode
	Reason    Reason // ServerUnreachable, ServerRefused or AnswerInvalid
	Decisions int    // how many answers are the fallback
	Err       error  // what went wrong; not for tenants, because it may name hosts
}

// Client asks a server. It may be used by several goroutines.
type Client struct {
	stub      pb.BillingModeServiceClient
	options   Options
	listed    names
	catalogue Catalogue
	before    atomic.Pointer[Catalogue] // the server's, of the answer before
	close     func() error              // nil if the connection is the caller's
}

// New makes a client over a connection of its caller's, which should have been dialled with DialOptions.
func New(over grpc.ClientConnInterface, options Options) *Client {
	if options.Timeout <= 0 {
		options.Timeout = 5 * time.Second
	}
	if options.BlockedKeys == "" {
		options.BlockedKeys = Agents
	}
	own := listed(options.BlockedKeys, options.ExtraBlockedKeys)
	judges := Catalogue{options.BlockedKeys, catalogue.Version, own.digest()}
	client := &Client{stub: pb.NewBillingModeServiceClient(over), options: options, listed: own, catalogue: judges}
	client.before.Store(&judges)
	return client
}

// ask makes one call of some decisions with a deadline; a reason instead of an answer means that there is none.
func ask[Q, A any](
	ctx context.Context, c *Client, method string, decisions int, request Q,
	call func(context.Context, Q, ...grpc.CallOption) (A, error),
) (answer A, reason Reason) {
	limited, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	answer, err := call(limited, request)
	switch {
	case err == nil:
		return answer, ""
	case unreachable[status.Code(err)]:
		return answer, c.fallback(ctx, Fallback{method, ServerUnreachable, decisions, err})
	default:
		return answer, c.fallback(ctx, Fallback{method, ServerRefused, decisions, err})
	}
}

// invalid tells of an answer that cannot be used.
func (c *Client) invalid(ctx context.Context, method string, decisions int, err error) Reason {
	return c.fallback(ctx, Fallback{method, AnswerInvalid, decisions, err})
}

func (c *Client) fallback(ctx context.Context, made Fallback) Reason {
	c.options.logger().WarnContext(ctx, "no answer that can be used, defaulting to platform_managed for safety",
		"method", made.Method, "reason", made.Reason, "decisions", made.Decisions, "error", made.Err)
	if c.options.OnFallback != nil {
		c.options.OnFallback(ctx, made)
	}
	return made.Reason
}

func (o Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.Default()
	}
	return o.Logger
}

// compare tells of a server that blocks other names than this client; it logs each list once.
func (c *Client) compare(ctx context.Context, method string, server Catalogue) {
	before := c.before.Swap(&server)
	if server.Digest == c.catalogue.Digest {
		return
	}
	if server != *before {
		c.options.logger().WarnContext(ctx, "the server blocks other vendor names than this client; what either blocks is refused "+
			"and stripped: give the client the set and the extra names of the server, or update the older of the two",
			"method", method, "server", server, "client", c.catalogue)
	}
	if c.options.OnDifference != nil {
		c.options.OnDifference(ctx, method, c.catalogue, server)
	}
}

// Catalogue is which list of vendor names judged an answer: the set, the date of its last change, and what identifies its
// names with those that configuration adds. It is zero if an older server does not say it.
type Catalogue struct {
	Set     string `json:"set"`
	Version string `json:"version"`
	Digest  string `json:"digest"`
}

func readCatalogueOf(p *pb.Catalogue) Catalogue {
	return Catalogue{p.GetSet(), p.GetVersion(), p.GetDigest()}
}

// at is the items at these positions.
func at(items []string, positions []int) []string {
	found := make([]string, len(positions))
	for i, position := range positions {
		found[i] = items[position]
	}
	return found
}
