package billing

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	pb "github.com/molecule-ai/billing-grpc/clients/go/billingv1"
)

// recorder notes of each call its token and its caller's certificate.
type recorder struct {
	pb.UnimplementedBillingModeServiceServer
	mutex  sync.Mutex
	tokens []string
	names  []string
}

func (r *recorder) ResolveBillingMode(ctx context.Context, _ *pb.ResolveBillingModeRequest) (*pb.ResolveBillingModeResponse, error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.tokens = append(r.tokens, strings.Join(metadata.ValueFromIncomingContext(ctx, "authorization"), ","))
	if from, _ := peer.FromContext(ctx); from != nil {
		if info, ok := from.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
			r.names = append(r.names, info.State.PeerCertificates[0].Subject.CommonName)
		}
	}
	resolution := inherits()
	resolution.WorkspaceId = ""
	return &pb.ResolveBillingModeResponse{Resolution: resolution}, nil
}

func (r *recorder) last(of *[]string) string {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if len(*of) == 0 {
		return ""
	}
	return (*of)[len(*of)-1]
}

// authority signs certificates for 127.0.0.1.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{certificate, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a authority) sign(t *testing.T, name string) (certificate, key []byte) {
	t.Helper()
	own := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"billing.internal"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, own.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
}

func write(t *testing.T, folder, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(folder, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func serveTLS(t *testing.T, service pb.BillingModeServiceServer, signer authority) string {
	t.Helper()
	pair, err := tls.X509KeyPair(signer.sign(t, "server"))
	if err != nil {
		t.Fatal(err)
	}
	known := x509.NewCertPool()
	known.AddCert(signer.certificate)
	config := &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: known, ClientAuth: tls.RequireAndVerifyClientCert}
	return serve(t, service, grpc.Creds(credentials.NewTLS(config)))
}

func mustDial(t *testing.T, target string, access Credentials, options Options) *Client {
	t.Helper()
	client, err := Dial(target, access, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func TestATokenIsReadAtEveryCall(t *testing.T) {
	service, folder := &recorder{}, t.TempDir()
	path := write(t, folder, "token", []byte("first\n"))
	client := mustDial(t, serve(t, service), Credentials{TokenFile: path}, Options{})
	for _, step := range []struct {
		name, sent string
		change     func()
	}{
		{"as it was", "Bearer first", func() {}},
		{"changed", "Bearer later", func() { write(t, folder, "token", []byte("later")) }},
		{"gone", "Bearer later", func() { os.Remove(path) }},
		{"come back", "Bearer third", func() { write(t, folder, "token", []byte(" third ")) }},
	} {
		step.change()
		if answer := client.Resolve(context.Background(), ""); answer.Error != "" || service.last(&service.tokens) != step.sent {
			t.Errorf("%s: %+v, %q", step.name, answer, service.last(&service.tokens))
		}
	}
	write(t, folder, "token", []byte("two words"))
	var heard error
	client.options.OnFallback = func(_ context.Context, made Fallback) { heard = made.Err }
	if answer := client.Resolve(context.Background(), ""); answer.Error != ServerRefused || len(service.tokens) != 4 {
		t.Errorf("%+v", answer)
	}
	if status.Code(heard) != codes.Unauthenticated || strings.Contains(heard.Error(), "two words") {
		t.Error(heard)
	}
}

func TestATokenNeverLeavesThisMachineInPlainText(t *testing.T) {
	path := write(t, t.TempDir(), "token", []byte("secret"))
	for _, target := range []string{"billing.internal:50051", "dns:///10.0.0.1:50051", "localhost.evil:1", "127.0.0.1.evil:1", "10.0.0.1:1"} {
		if _, err := Dial(target, Credentials{TokenFile: path}, Options{}); err == nil {
			t.Error(target)
		}
	}
	for _, target := range []string{"localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/run/billing.sock", "dns:///localhost:1"} {
		mustDial(t, target, Credentials{TokenFile: path}, Options{})
	}
}

// elsewhere is a connection to another machine, as far as its address says.
type elsewhere struct{ net.Conn }

func (elsewhere) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 50051} }

func TestTheAddressThatIsDialledDecidesWhetherTheTokenIsSent(t *testing.T) {
	service, path := &recorder{}, write(t, t.TempDir(), "token", []byte("secret"))
	address := serve(t, service)
	// The name is localhost to the check of the target, and leads elsewhere.
	dialer := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		connection, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		return elsewhere{connection}, err
	})
	client, err := Dial("localhost:1", Credentials{TokenFile: path}, Options{Timeout: time.Second}, dialer)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if answer := client.Resolve(context.Background(), ""); answer.Error != ServerUnreachable || len(service.tokens) != 0 {
		t.Errorf("%+v, %q", answer, service.tokens)
	}
	// Without a token it may be asked.
	client = mustDial(t, address, Credentials{}, Options{})
	if answer := client.Resolve(context.Background(), ""); answer.Error != "" || len(service.tokens) != 1 {
		t.Errorf("%+v, %q", answer, service.tokens)
	}
}

func TestATokenFileThatCannotBeUsedIsAnErrorAtOnce(t *testing.T) {
	folder := t.TempDir()
	for name, path := range map[string]string{
		"missing": filepath.Join(folder, "none"), "a folder": folder, "empty": write(t, folder, "empty", nil),
		"two words": write(t, folder, "words", []byte("secret word")), "too long": write(t, folder, "long", bytes.Repeat([]byte("a"), maxFileBytes+1)),
	} {
		if _, err := Dial("localhost:1", Credentials{TokenFile: path}, Options{}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Error(name, err)
		}
	}
}

func TestARenewedCertificateIsUsedWithoutARestart(t *testing.T) {
	t.Parallel()
	service, folder, signer := &recorder{}, t.TempDir(), newAuthority(t)
	certificate, key := signer.sign(t, "first")
	files := &TLS{
		CAFile: write(t, folder, "ca.crt", signer.pem), CertFile: write(t, folder, "tls.crt", certificate), KeyFile: write(t, folder, "tls.key", key),
	}
	var logged bytes.Buffer
	token := write(t, folder, "token", []byte("secret"))
	options := Options{Logger: slog.New(slog.NewTextHandler(&logged, nil))}
	client := mustDial(t, serveTLS(t, service, signer), Credentials{TokenFile: token, TLS: files}, options)
	asked := func(name string) {
		t.Helper()
		answer := client.Resolve(context.Background(), "")
		if answer.Error != "" || service.last(&service.names) != name || service.last(&service.tokens) != "Bearer secret" {
			t.Errorf("%+v, %q", answer, service.names)
		}
	}
	asked("first")
	certificate, key = signer.sign(t, "second")
	write(t, folder, "tls.crt", certificate)
	time.Sleep(lookAgain)
	asked("first") // a certificate without its key changes nothing
	if !strings.Contains(logged.String(), "level=WARN") {
		t.Error("a half-finished renewal is not logged")
	}
	write(t, folder, "tls.key", key)
	time.Sleep(lookAgain)
	asked("second")
	certificate, key = signer.sign(t, "third")
	write(t, folder, "tls.crt", certificate)
	write(t, folder, "tls.key", key)
	time.Sleep(lookAgain)
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if answer := client.Resolve(context.Background(), ""); answer.Error != ServerUnreachable {
		t.Errorf("%+v", answer)
	}
}

func TestAServerOfAnotherAuthorityGetsNoToken(t *testing.T) {
	service, folder, signer := &recorder{}, t.TempDir(), newAuthority(t)
	certificate, key := signer.sign(t, "client")
	access := Credentials{TokenFile: write(t, folder, "token", []byte("secret")), TLS: &TLS{
		CAFile: write(t, folder, "ca.crt", newAuthority(t).pem), CertFile: write(t, folder, "tls.crt", certificate), KeyFile: write(t, folder, "tls.key", key),
	}}
	client := mustDial(t, serveTLS(t, service, signer), access, Options{Timeout: time.Second})
	if answer := client.Resolve(context.Background(), ""); answer.Error != ServerUnreachable || len(service.tokens) != 0 {
		t.Errorf("%+v", answer)
	}
	access.TLS.CAFile, access.TLS.ServerName = write(t, folder, "right.crt", signer.pem), "elsewhere.internal"
	client = mustDial(t, serveTLS(t, service, signer), access, Options{Timeout: time.Second})
	if answer := client.Resolve(context.Background(), ""); answer.Error != ServerUnreachable || len(service.tokens) != 0 {
		t.Errorf("another name: %+v", answer)
	}
}

func TestWhatIsNoRegularFileIsNotRead(t *testing.T) {
	// A pipe would block, and a device may never end.
	if _, err := readFile(os.DevNull); err == nil {
		t.Error("it was read")
	}
}

func TestTLSFilesThatCannotBeUsedAreAnErrorAtOnce(t *testing.T) {
	folder, signer := t.TempDir(), newAuthority(t)
	certificate, key := signer.sign(t, "client")
	cert, _ := write(t, folder, "tls.crt", certificate), write(t, folder, "tls.key", key)
	_, other := signer.sign(t, "other")
	for name, files := range map[string]TLS{
		"missing": {CAFile: filepath.Join(folder, "none")}, "no PEM": {CAFile: write(t, folder, "ca.crt", []byte("none"))},
		"without its key": {CertFile: cert}, "a key alone": {KeyFile: filepath.Join(folder, "tls.key")}, "another's key": {CertFile: cert, KeyFile: write(t, folder, "other.key", other)},
	} {
		if _, err := Dial("billing.internal:1", Credentials{TLS: &files}, Options{}); err == nil {
			t.Error(name)
		}
	}
}
