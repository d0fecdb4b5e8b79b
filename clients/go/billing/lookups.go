package billing

import (
	"context"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/resolver"
)

const (
	lookupPause = 500 * time.Millisecond // between two look-ups of a name
	lookupLimit = 5 * time.Second        // for one look-up
)

// lookups resolves names of servers in place of gRPC's own resolver, which looks up at most every 30 seconds, and a name
// that is missing at pauses that grow to two minutes: after a rolling update behind DNS a client would be blind for as long.
type lookups struct{}

func (lookups) Scheme() string { return "dns" }

// Build takes dns:///host:port, host:port and dns://server/host:port, as gRPC does.
func (lookups) Build(target resolver.Target, connection resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	host, port, err := net.SplitHostPort(target.Endpoint())
	if err != nil {
		host, port = target.Endpoint(), "443"
	}
	if host == "" {
		host = "localhost"
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &lookup{host: host, port: port, connection: connection, again: make(chan struct{}, 1), cancel: cancel}
	if server := target.URL.Host; server != "" {
		if _, _, err := net.SplitHostPort(server); err != nil {
			server = net.JoinHostPort(server, "53")
		}
		l.names.PreferGo = true
		l.names.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server)
		}
	}
	l.running.Add(1)
	go func() {
		defer l.running.Done()
		l.run(ctx)
	}()
	return l, nil
}

type lookup struct {
	host, port string
	connection resolver.ClientConn
	names      net.Resolver
	again      chan struct{}
	cancel     context.CancelFunc
	running    sync.WaitGroup
}

// ResolveNow is what gRPC calls when a connection fails.
func (l *lookup) ResolveNow(resolver.ResolveNowOptions) {
	select {
	case l.again <- struct{}{}:
	default:
	}
}

func (l *lookup) Close() {
	l.cancel()
	l.running.Wait()
}

func (l *lookup) run(ctx context.Context) {
	for {
		failed := l.once(ctx) != nil
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookupPause):
		}
		if failed {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-l.again:
		}
	}
}

func (l *lookup) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	hosts, err := l.names.LookupHost(ctx, l.host)
	if err != nil {
		l.connection.ReportError(err)
		return err
	}
	var state resolver.State
	for _, host := range hosts {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: net.JoinHostPort(host, l.port)})
	}
	return l.connection.UpdateState(state)
}
