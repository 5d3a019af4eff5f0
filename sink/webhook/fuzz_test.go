package webhook

import (
	"errors"
	"net/http"
	"testing"
	"time"
)

func FuzzVerify(f *testing.F) {
	f.Add(documentedSignature)
	f.Add("t=,v1=")
	f.Add("v1=00,t=1,v1=zz,,=")
	f.Fuzz(func(t *testing.T, value string) {
		h := http.Header{SignatureHeader: {value}}
		if err := Verify(h, []byte("body"), []byte("secret"), time.Minute); !errors.Is(err, ErrSignature) {
			t.Errorf("%q: %v", value, err)
		}
	})
}
