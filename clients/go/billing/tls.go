package billing

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

const (
	lookAgain = time.Second      // between two looks at the files of TLS
	retire    = 10 * time.Second // for the calls of a replaced connection; the service config ends each after five
)

// TLS is the files, in PEM, that verify the server and identify the client. Changed files take effect with a call about a
// second later, on a new connection. A half-finished renewal changes nothing and is logged.
type TLS struct {
	CAFile     string // the authorities that sign the server's certificate; the system's if empty
	CertFile   string // the client's certificate chain, for a listener that requires one; needs KeyFile
	KeyFile    string // the key of CertFile
	ServerName string // the name in the server's certificate, if it is not the dialled host
}

// load is the contents of the files, and what they are together.
func (t TLS) load() (contents [][]byte, config *tls.Config, err error) {
	if (t.CertFile == "") != (t.KeyFile == "") {
		return nil, nil, errors.New("a client certificate needs its key, and the key its certificate: give CertFile and KeyFile")
	}
	contents = make([][]byte, 3)
	for i, path := range []string{t.CAFile, t.CertFile, t.KeyFile} {
		if path != "" {
			if contents[i], err = readFile(path); err != nil {
				return nil, nil, err
			}
		}
	}
	config = &tls.Config{ServerName: t.ServerName, MinVersion: tls.VersionTLS12}
	if t.CAFile != "" {
		if config.RootCAs = x509.NewCertPool(); !config.RootCAs.AppendCertsFromPEM(contents[0]) {
			return nil, nil, fmt.Errorf("%s holds no certificate in PEM", t.CAFile)
		}
	}
	if t.CertFile != "" {
		pair, err := tls.X509KeyPair(contents[1], contents[2])
		if err != nil {
			return nil, nil, fmt.Errorf("%s and %s: %w", t.CertFile, t.KeyFile, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return contents, config, nil
}

// connection is one gRPC connection, or with TLS one after the other: a connection keeps the certificate that it was opened
// with, and a server refuses calls on it when that has expired.
type connection struct {
	tls    TLS
	dial   func(credentials.TransportCredentials) (*grpc.ClientConn, error) // nil if it is never replaced
	logger func() *slog.Logger

	mutex    sync.Mutex
	current  *grpc.ClientConn
	replaced []*grpc.ClientConn
	contents [][]byte
	looked   time.Time
	problem  string // what was logged of the files
	closed   bool
}

func connectTLS(
	files TLS, dial func(credentials.TransportCredentials) (*grpc.ClientConn, error), logger func() *slog.Logger,
) (*connection, error) {
	c := &connection{tls: files, dial: dial, logger: logger}
	if err := c.renew(); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return c, nil
}

// renew opens a connection if the files have changed. With an error the old one stays.
func (c *connection) renew() error {
	c.looked = time.Now()
	contents, config, err := c.tls.load()
	if err != nil || slices.EqualFunc(contents, c.contents, bytes.Equal) {
		return err
	}
	made, err := c.dial(credentials.NewTLS(config))
	if err != nil {
		return err
	}
	if old := c.current; old != nil {
		c.replaced = append(c.replaced, old)
		time.AfterFunc(retire, func() { c.drop(old) })
	}
	c.current, c.contents = made, contents
	return nil
}

func (c *connection) drop(old *grpc.ClientConn) {
	_ = old.Close()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.replaced = slices.DeleteFunc(c.replaced, func(each *grpc.ClientConn) bool { return each == old })
}

// use is the connection for a call that starts now.
func (c *connection) use() (*grpc.ClientConn, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.closed {
		return nil, status.Error(codes.Canceled, "this client was closed")
	}
	if c.dial != nil && time.Since(c.looked) >= lookAgain {
		problem := ""
		if err := c.renew(); err != nil {
			problem = err.Error()
		}
		if problem != "" && problem != c.problem {
			c.logger().Warn("the TLS files cannot be used, the old ones stay in force", "error", problem)
		}
		c.problem = problem
	}
	return c.current, nil
}

// Invoke implements grpc.ClientConnInterface.
func (c *connection) Invoke(ctx context.Context, method string, args, reply any, options ...grpc.CallOption) error {
	current, err := c.use()
	if err != nil {
		return err
	}
	return current.Invoke(ctx, method, args, reply, options...)
}

// NewStream implements grpc.ClientConnInterface.
func (c *connection) NewStream(
	ctx context.Context, about *grpc.StreamDesc, method string, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	current, err := c.use()
	if err != nil {
		return nil, err
	}
	return current.NewStream(ctx, about, method, options...)
}

// Close ends the connections and their calls.
func (c *connection) Close() error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	for _, old := range c.replaced {
		_ = old.Close()
	}
	return c.current.Close()
}
