package bus

import (
	"encoding/json"
	"fmt"
	"slices"
)

// metaResync is the key of a stream's metadata that holds its Resync, as JSON.
const metaResync = "flo.resync"

// Resync says in a stream's metadata that it was made to start a group over on somebody's request. It is written
// when the stream is made and never changes, so that stream and request can't be told apart by a crash.
type Resync struct {
	// Token of the request that this stream answers.
	Token string `json:"token,omitempty"`
	// Tokens of all requests of the group that were answered, this one and earlier ones.
	Tokens []string `json:"tokens,omitempty"`
	// Replaces are the incarnations whose checkpoints this stream takes the place of.
	Replaces []string `json:"replaces,omitempty"`
}

// Answers reports whether a request was answered by this stream, or an earlier one.
func (r Resync) Answers(token string) bool { return slices.Contains(r.Tokens, token) }

// Resync gives what the stream says of the request that it was made for; zero if it wasn't made for one.
func (s *Stream) Resync() Resync { return s.resync }

// metadata gives what stands in the stream's metadata.
func (r Resync) metadata() (string, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("bus: %w", err)
	}
	return string(data), nil
}

// readResync reads it; what isn't there, or can't be read, is no request.
func readResync(metadata map[string]string) (r Resync) {
	if json.Unmarshal([]byte(metadata[metaResync]), &r) != nil {
		return Resync{}
	}
	return r
}
