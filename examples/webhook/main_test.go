package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/pgflo/flo/flotest"
)

func TestMain(m *testing.M) { os.Exit(flotest.Main(m, flotest.CheckLeaks())) }

func TestExampleReceivesAll(t *testing.T) {
	flotest.RequireOwnServer(t)
	var out strings.Builder
	if err := run(t.Context(), &out); err != nil || !strings.Contains(out.String(), "received: 6 changes of 6") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestReceiverRefusesWhatIsNotSigned(t *testing.T) {
	r := &receiver{out: &strings.Builder{}, secret: []byte("secret"), seen: map[string]bool{}}
	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/changes", strings.NewReader("[]")))
	if w.Code != http.StatusForbidden || r.refused != 1 {
		t.Errorf("answered %d", w.Code)
	}
}
