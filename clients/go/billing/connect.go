package billing

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/credentials/local"
)

// Credentials of a connection. The zero value is plain text without a token: a laptop, or a mesh that encrypts.
type Credentials struct {
	// TokenFile holds a bearer token. It is read at every call, so that tokens rotate, and sent over TLS or to this machine
	// only.
	TokenFile string
	// TLS verifies the server and identifies the client; nil for plain text.
	TLS *TLS
}

// Every address of such a target is on this machine.
var localTarget = regexp.MustCompile(
	`^(unix(-abstract)?:.*|(dns:|dns:///|passthrough:///)?(localhost|127(\.[0-9]+){3}|\[::1\]):[0-9]+)$`)

// Dial makes a client with a connection of its own, which it closes with Close. An error says that the target, a file or
// the two together are wrong; the first call shows whether a server listens. Further dial options, as for tracing, come
// before the client's own.
func Dial(target string, access Credentials, options Options, more ...grpc.DialOption) (*Client, error) {
	made, err := connect(target, access, options.logger, more)
	if err != nil {
		return nil, err
	}
	client := New(made, options)
	client.close = made.Close
	return client, nil
}

func connect(target string, access Credentials, logger func() *slog.Logger, more []grpc.DialOption) (*connection, error) {
	if target == "" {
		return nil, errors.New("the target is empty: give host:port")
	}
	token := &tokenFile{path: access.TokenFile, secure: access.TLS != nil}
	if access.TokenFile != "" {
		if access.TLS == nil && !localTarget.MatchString(target) {
			return nil, fmt.Errorf(
				"a token is sent only over TLS or to this machine, but %s is another machine: give Credentials.TLS", target)
		}
		if _, err := token.read(); err != nil {
			return nil, err
		}
		more = append(more[:len(more):len(more)], grpc.WithPerRPCCredentials(token))
	}
	dial := func(transport credentials.TransportCredentials) (*grpc.ClientConn, error) {
		return grpc.NewClient(target, append(more[:len(more):len(more)], DialOptions(transport)...)...)
	}
	if access.TLS != nil {
		return connectTLS(*access.TLS, dial, logger)
	}
	transport := insecure.NewCredentials()
	if access.TokenFile != "" {
		// It looks at the address that was dialled: a name that leads to another machine gets no token either.
		transport = local.NewCredentials()
	}
	current, err := dial(transport)
	if err != nil {
		return nil, err
	}
	return &connection{current: current}, nil
}

// Close ends the connection of a client that Dial made, and its calls: a decision is the fallback from then on. The
// connection given to New stays its caller's.
func (c *Client) Close() error {
	if c.close == nil {
		return nil
	}
	return c.close()
}
