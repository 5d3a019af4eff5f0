package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// SignatureHeader carries the signature; see Verify.
const SignatureHeader = "Flo-Signature"

// signatureVersion names the scheme within the header.
const signatureVersion = "v1"

// ErrSignature says that a request was not signed with the secret, or not lately.
var ErrSignature = errors.New("webhook: signature not valid")

// sign gives the header's value: one signature for each secret.
func sign(at time.Time, body []byte, secrets [][]byte) string {
	stamp := strconv.FormatInt(at.Unix(), 10)
	value := "t=" + stamp
	for _, secret := range secrets {
		value += "," + signatureVersion + "=" + hex.EncodeToString(mac(secret, stamp, body))
	}
	return value
}

// mac is HMAC-SHA256 of the time stamp, a full stop, and the body.
func mac(secret []byte, stamp string, body []byte) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(stamp))
	h.Write([]byte{'.'})
	h.Write(body)
	return h.Sum(nil)
}

// Verify is for receivers: it checks that a request's body was signed with secret, not longer ago, nor
// further in the future, than tolerance (5 minutes is usual; 0 takes any time). body is as it came over
// the network, before it is decompressed. Errors wrap ErrSignature.
//
// The scheme, for receivers in other languages: the header Flo-Signature is (here of the body "[]" under
// the secret "secret")
//
//	t=1714979289,v1=7833c5fbb9099bee09156e3cb60b680dfe45ac511fb8467953d2db6967bc5737
//
// t is the time of sending in seconds since 1970. v1 is the lower-case hexadecimal HMAC-SHA256, under the
// secret, of t's digits as they stand there, a full stop, and the body's bytes. There are several v1
// while a secret is being replaced: one of them has to match. Compare in constant time.
func Verify(h http.Header, body, secret []byte, tolerance time.Duration) error {
	value := h.Get(SignatureHeader)
	if value == "" {
		return fmt.Errorf("%w: no %s header", ErrSignature, SignatureHeader)
	}
	var stamp string
	var given [][]byte
	for part := range strings.SplitSeq(value, ",") {
		name, text, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch name {
		case "t":
			stamp = text
		case signatureVersion:
			if b, err := hex.DecodeString(text); err == nil {
				given = append(given, b)
			}
		}
	}
	at, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return fmt.Errorf("%w: no time stamp", ErrSignature)
	}
	if age := time.Since(time.Unix(at, 0)).Abs(); tolerance > 0 && age > tolerance {
		return fmt.Errorf("%w: its time is %s away", ErrSignature, age.Round(time.Second))
	}
	want := mac(secret, stamp, body)
	for _, b := range given {
		if hmac.Equal(b, want) {
			return nil
		}
	}
	return fmt.Errorf("%w: it does not match the body", ErrSignature)
}
