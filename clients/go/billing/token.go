package billing

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const maxFileBytes = 1 << 20

var tokenText = regexp.MustCompile(`^[!-~]+$`)

// tokenFile gives each call the token that a file holds at that moment. While the file cannot be read, it is the last one:
// the file may be being replaced. No message repeats a token.
type tokenFile struct {
	path   string
	secure bool // the connection is encrypted, and gRPC refuses the token to one that is not
	last   atomic.Pointer[string]
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t *tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := t.read()
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (t *tokenFile) RequireTransportSecurity() bool { return t.secure }

func (t *tokenFile) read() (string, error) {
	content, err := readFile(t.path)
	if last := t.last.Load(); err != nil && last != nil {
		return *last, nil
	}
	if err != nil {
		return "", fmt.Errorf("the token file cannot be read: %w", err)
	}
	token := strings.TrimSpace(string(content))
	if !tokenText.MatchString(token) {
		return "", fmt.Errorf("the token file %s is empty, or holds characters that a token cannot have", t.path)
	}
	t.last.Store(&token)
	return token, nil
}

// readFile is a file's content. What is no regular file could block, and a part of a file may mean the opposite of the whole.
func readFile(path string) ([]byte, error) {
	found, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !found.Mode().IsRegular():
		return nil, &os.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	case found.Size() > maxFileBytes:
		return nil, &os.PathError{Op: "read", Path: path, Err: fmt.Errorf("longer than %d bytes", maxFileBytes)}
	}
	return os.ReadFile(path)
}
