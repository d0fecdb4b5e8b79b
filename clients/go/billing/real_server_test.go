package billing

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
)

// TestARealServer administers the workspace in REAL_WORKSPACE, which has no mode of its own, on the server in REAL_SERVER.
func TestARealServer(t *testing.T) {
	address, id := os.Getenv("REAL_SERVER"), os.Getenv("REAL_WORKSPACE")
	if address == "" {
		t.Skip("no real server was asked: set REAL_SERVER and REAL_WORKSPACE")
	}
	ctx, client := context.Background(), mustDial(t, address, Credentials{}, Options{})
	found, err := client.Get(ctx, id)
	if err != nil || found.Resolution.WorkspaceOverride != nil || found.Etag == "" || !found.UpdateTime.IsZero() {
		t.Fatalf("%+v, %v", found, err)
	}
	update, err := client.Set(ctx, id, BYOK, SetOptions{Reason: "own contract", Etag: found.Etag})
	if err != nil || update.Current.Resolution.Mode != BYOK || update.Previous.Mode != PlatformManaged || update.Current.UpdateTime.IsZero() {
		t.Fatalf("%+v, %v", update, err)
	}
	if again, err := client.Get(ctx, id); err != nil || again.Etag != update.Current.Etag || again.UpdatedBy == "" {
		t.Errorf("%+v, %v", again, err)
	}
	_, err = client.Set(ctx, id, Disabled, SetOptions{Etag: found.Etag})
	var stale *EtagStaleError
	if !errors.As(err, &stale) || stale.Current.Etag != update.Current.Etag || stale.Current.Resolution.Mode != BYOK {
		t.Fatal(err)
	}
	if tried, err := client.Set(ctx, id, Disabled, SetOptions{ValidateOnly: true}); err != nil || tried.Current.Resolution.Mode != Disabled {
		t.Errorf("%+v, %v", tried, err)
	}
	if mode := client.Resolve(ctx, id).Mode; mode != BYOK {
		t.Error(mode)
	}
	for range 30 { // with those before more than the 50 of a page
		for _, change := range []func() (Update, error){
			func() (Update, error) { return client.Inherit(ctx, id, SetOptions{}) },
			func() (Update, error) { return client.Set(ctx, id, Disabled, SetOptions{Reason: "again"}) },
		} {
			if _, err := change(); err != nil {
				t.Fatal(err)
			}
		}
	}
	count, last := 0, Change{}
	for change, err := range client.Changes(ctx, id) {
		if err != nil {
			t.Fatal(err)
		}
		if count++; change.WorkspaceID != id || change.ChangeTime.IsZero() {
			t.Errorf("%+v", change)
		}
		last = change
	}
	if count != 61 || last.Reason != "own contract" || last.PreviousOverride != nil || *last.NewOverride != string(BYOK) {
		t.Errorf("%d changes; the first is %+v", count, last)
	}
	for reason, call := range map[Reason]func() error{
		WorkspaceNotFound: func() error {
			_, err := client.Set(ctx, "00000000-0000-4000-8000-00000000dead", BYOK, SetOptions{})
			return err
		},
		ModeInvalid:        func() error { _, err := client.Set(ctx, id, "BYOK", SetOptions{}); return err },
		WorkspaceIDInvalid: func() error { _, err := client.Get(ctx, "no id"); return err },
		TextInvalid:        func() error { _, err := client.Inherit(ctx, id, SetOptions{Reason: "two\nlines"}); return err },
	} {
		err := call()
		requireReason(t, err, reason)
		var failed *Error
		if errors.As(err, &failed) && (reason == WorkspaceNotFound) != (len(failed.Fields) == 0) {
			t.Error(fmt.Sprint(failed.Fields), err)
		}
	}
}
