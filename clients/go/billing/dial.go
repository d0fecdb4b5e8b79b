package billing

import (
	_ "embed"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

//go:embed service_config.json
var serviceConfig string

// DialOptions give a connection its credentials, the retries that ship with the contract, and bring it back within a second
// or so, also where the server's name leads elsewhere: by default gRPC waits for up to two minutes, and every decision
// would be the fallback for as long.
//
// Without TLS the connection never goes through a proxy of the environment (HTTPS_PROXY), which would read its token.
func DialOptions(transport credentials.TransportCredentials) []grpc.DialOption {
	return dialOptions(transport, keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second})
}

// dialOptions notices also a peer that has vanished: without pings, every call would wait for it until TCP gives up, after a
// quarter of an hour. The server allows one ping every ten seconds.
func dialOptions(transport credentials.TransportCredentials, pings keepalive.ClientParameters) []grpc.DialOption {
	reconnect := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(serviceConfig), grpc.WithDisableServiceConfig(),
		grpc.WithResolvers(lookups{}),
		grpc.WithKeepaliveParams(pings),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 2 * time.Second}),
	}
	if transport.Info().SecurityProtocol != "tls" {
		options = append(options, grpc.WithNoProxy())
	}
	return options
}
