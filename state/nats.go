package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// kv keeps a group's records in a NATS KV bucket, one key each, as JSON that people can read.
type kv struct {
	js     jetstream.JetStream
	bucket string
	kv     jetstream.KeyValue
}

const (
	replicatorKey = "replicator"
	workerPrefix  = "workers."
)

// BucketName of a group.
func BucketName(group string) string { return "flo_" + group }

var workerName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// NewNATS opens the group's bucket, or with create makes it. A bucket that doesn't exist is
// ErrNotFound. Reads are answered by the bucket's leader, never by a replica that may be behind.
func NewNATS(ctx context.Context, js jetstream.JetStream, group string, replicas int, create bool) (Store, error) {
	name := BucketName(group)
	b, err := js.KeyValue(ctx, name)
	if errors.Is(err, jetstream.ErrBucketNotFound) && create {
		b, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: name, Description: "flo: state of group " + group, Replicas: max(replicas, 1), Storage: jetstream.FileStorage,
		})
		if errors.Is(err, jetstream.ErrBucketExists) {
			b, err = js.KeyValue(ctx, name)
		}
	}
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, fmt.Errorf("%w: bucket %s: start the group's replicator first", ErrNotFound, name)
	}
	if err != nil {
		return nil, fmt.Errorf("state: bucket %s: %w", name, err)
	}
	s := &kv{js: js, bucket: name, kv: b}
	return s, s.readFromLeader(ctx)
}

// readFromLeader turns direct reads off: nats.go makes buckets with them, and a replica that is
// behind may answer them. Get looks at the setting that was read when the bucket was opened.
func (s *kv) readFromLeader(ctx context.Context) error {
	str, err := s.js.Stream(ctx, "KV_"+s.bucket)
	if err != nil {
		return fmt.Errorf("state: bucket %s: %w", s.bucket, err)
	}
	cfg := str.CachedInfo().Config
	if cfg.AllowDirect {
		cfg.AllowDirect = false
		if _, err := s.js.UpdateStream(ctx, cfg); err != nil {
			return fmt.Errorf("state: bucket %s: turning direct reads off: %w", s.bucket, err)
		}
		if s.kv, err = s.js.KeyValue(ctx, s.bucket); err != nil {
			return fmt.Errorf("state: bucket %s: %w", s.bucket, err)
		}
	}
	return nil
}

func (s *kv) get(ctx context.Context, key string, v any) (uint64, error) {
	e, err := s.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, fmt.Errorf("%w: %s in bucket %s", ErrNotFound, key, s.bucket)
	}
	if err != nil {
		return 0, fmt.Errorf("state: reading %s from bucket %s: %w", key, s.bucket, err)
	}
	if err := json.Unmarshal(e.Value(), v); err != nil {
		return 0, fmt.Errorf("state: %s in bucket %s is not a record of flo: %w", key, s.bucket, err)
	}
	return e.Revision(), nil
}

func (s *kv) Replicator(ctx context.Context) (r Replicator, err error) {
	_, err = s.get(ctx, replicatorKey, &r)
	return r, err
}

func (s *kv) PutReplicator(ctx context.Context, r Replicator) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := s.kv.Put(ctx, replicatorKey, data); err != nil {
		return fmt.Errorf("state: writing %s to bucket %s: %w", replicatorKey, s.bucket, err)
	}
	return nil
}

func (s *kv) Workers(ctx context.Context) ([]Worker, error) {
	keys, err := s.kv.ListKeysFiltered(ctx, workerPrefix+"*")
	if err != nil {
		return nil, fmt.Errorf("state: listing bucket %s: %w", s.bucket, err)
	}
	defer keys.Stop()
	var ws []Worker
	for key := range keys.Keys() {
		w, _, err := s.Worker(ctx, strings.TrimPrefix(key, workerPrefix))
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		ws = append(ws, w)
	}
	return ws, ctx.Err()
}

func (s *kv) Worker(ctx context.Context, name string) (w Worker, rev uint64, err error) {
	rev, err = s.get(ctx, workerPrefix+name, &w)
	return w, rev, err
}

func (s *kv) PutWorker(ctx context.Context, w Worker, rev uint64) (uint64, error) {
	if !workerName.MatchString(w.Name) {
		return 0, fmt.Errorf("state: worker name %q: want one to 64 of letters, digits, '_' and '-'", w.Name)
	}
	data, err := json.Marshal(w)
	if err != nil {
		return 0, err
	}
	var next uint64
	if rev == 0 {
		next, err = s.kv.Create(ctx, workerPrefix+w.Name, data)
	} else {
		next, err = s.kv.Update(ctx, workerPrefix+w.Name, data, rev)
	}
	if errors.Is(err, jetstream.ErrKeyExists) {
		return 0, fmt.Errorf("%w: worker %q", ErrConflict, w.Name)
	}
	if err != nil {
		return 0, fmt.Errorf("state: writing worker %q to bucket %s: %w", w.Name, s.bucket, err)
	}
	return next, nil
}

func (s *kv) DeleteWorker(ctx context.Context, name string) error {
	if err := s.kv.Delete(ctx, workerPrefix+name); err != nil {
		return fmt.Errorf("state: deleting worker %q from bucket %s: %w", name, s.bucket, err)
	}
	return nil
}

func (s *kv) Drop(ctx context.Context) error {
	err := s.js.DeleteKeyValue(ctx, s.bucket)
	if err != nil && !errors.Is(err, jetstream.ErrBucketNotFound) {
		return fmt.Errorf("state: deleting bucket %s: %w", s.bucket, err)
	}
	return nil
}
