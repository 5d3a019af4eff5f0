package state

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/internal/request"
)

// ErrBucket says that the group's bucket exists with settings that flo can't work with.
var ErrBucket = errors.New("state: the bucket has settings that flo can't work with")

const (
	keyReplicator = "replicator"
	keyWorkers    = "workers."
	keyLeases     = "leases."
	// requestTimeout bounds one request; a context may end it sooner.
	requestTimeout = 10 * time.Second
	// askAgain is how long a write waits for its answer before it is looked for.
	askAgain = requestTimeout / 4
)

// BucketName is the name of the NATS key-value bucket of a group's records.
func BucketName(group string) string { return "flo_" + group }

// natsStore keeps the records in a NATS key-value bucket (NATS ADR-8).
type natsStore struct {
	js     jetstream.JetStream
	kv     jetstream.KeyValue
	stream jetstream.Stream
	bucket string

	pending string // of the bucket's metadata
}

// NewNATS opens the group's bucket, BucketName(group), or makes it if create is set; without it a
// missing bucket is ErrNotFound. replicas is used when it is made; 0 is 1. Keys are "replicator",
// "workers.<name>", "leases.<name>", "tables.<n>", "adopted" and "resync", values JSON: `nats kv get flo_<group> replicator`.
//
// The bucket is made without direct reads, which a replica that is behind may answer: the client
// asks the stream's leader then. They are turned off in a bucket that allows them if create is set;
// else it is ErrBucket, as one whose values expire or that is a mirror is in any case.
func NewNATS(ctx context.Context, js jetstream.JetStream, group string, replicas int, create bool) (Store, error) {
	return newNATS(ctx, js, group, replicas, create, "")
}

func newNATS(ctx context.Context, js jetstream.JetStream, group string, replicas int, create bool, pending string) (Store, error) {
	if err := CheckName(group); err != nil {
		return nil, fmt.Errorf("state: group: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s := &natsStore{js: js, bucket: BucketName(group)}
	err := s.open(ctx, create)
	if errors.Is(err, ErrNotFound) && create {
		// Not by CreateKeyValue, which always allows direct reads.
		c := bucketConfig(s.bucket, replicas)
		if pending != "" {
			c.Metadata = map[string]string{metaPending: pending}
		}
		_, err = js.CreateStream(ctx, c)
		if err == nil || errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // or somebody was faster
			err = s.open(ctx, create)
		}
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// bucketConfig is what a bucket with one revision of each key is, in terms of its stream.
func bucketConfig(bucket string, replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              "KV_" + bucket,
		Description:       "flo: state of the group's replicator and workers",
		Subjects:          []string{"$KV." + bucket + ".>"},
		Storage:           jetstream.FileStorage,
		Replicas:          max(replicas, 1),
		MaxMsgsPerSubject: 1,
		MaxBytes:          -1,
		MaxMsgs:           -1,
		MaxMsgSize:        -1,
		MaxConsumers:      -1,
		Discard:           jetstream.DiscardNew,
		AllowRollup:       true,
		DenyDelete:        true,
		AllowDirect:       false,
	}
}

func (s *natsStore) open(ctx context.Context, mend bool) error {
	var stream jetstream.Stream
	err := s.again(ctx, func(ctx context.Context) (err error) {
		stream, err = s.js.Stream(ctx, "KV_"+s.bucket)
		return err
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("%w: no bucket %s: start the group's replicator first", ErrNotFound, s.bucket)
	}
	if err != nil {
		return fmt.Errorf("state: open bucket %s: %w", s.bucket, err)
	}
	c := stream.CachedInfo().Config
	if c.AllowDirect && mend && c.Mirror == nil {
		c.AllowDirect = false
		if stream, err = s.js.UpdateStream(ctx, c); err != nil {
			return fmt.Errorf("state: turn direct reads of bucket %s off: %w", s.bucket, err)
		}
	}
	var differs []string
	if c.AllowDirect {
		differs = append(differs, "it allows direct reads: nats stream edit KV_"+s.bucket+" --no-allow-direct")
	}
	if c.MaxAge != 0 {
		differs = append(differs, "its values expire: nats stream edit KV_"+s.bucket+" --max-age 0")
	}
	if c.Mirror != nil {
		differs = append(differs, "it is a mirror: give flo the original, or another group name")
	}
	if differs != nil {
		return fmt.Errorf("%w: %s: %s", ErrBucket, s.bucket, strings.Join(differs, "; "))
	}
	// The client reads from the leader because of what it finds here, AllowDirect off.
	var kv jetstream.KeyValue
	err = s.again(ctx, func(ctx context.Context) (err error) {
		kv, err = s.js.KeyValue(ctx, s.bucket)
		return err
	})
	if err != nil {
		return fmt.Errorf("state: open bucket %s: %w", s.bucket, err)
	}
	s.kv, s.stream, s.pending = kv, stream, c.Metadata[metaPending]
	return nil
}

// get reads one record.
func (s *natsStore) get(ctx context.Context, key string, into any) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	began := time.Now()
	e, err := s.ask(ctx, key)
	for errors.Is(err, jetstream.ErrKeyNotFound) {
		if err := s.missing(ctx, key, began); err != nil {
			return 0, err
		}
		e, err = s.ask(ctx, key)
	}
	if gone(err) {
		return 0, fmt.Errorf("%w: %s", ErrNotFound, key)
	}
	if err != nil {
		return 0, fmt.Errorf("state: read %s: %w", key, err)
	}
	if err := json.Unmarshal(e.Value(), into); err != nil {
		return 0, fmt.Errorf("state: %s in bucket %s is not a record of flo: %w", key, s.bucket, err)
	}
	return e.Revision(), nil
}

// ask reads a key.
func (s *natsStore) ask(ctx context.Context, key string) (e jetstream.KeyValueEntry, err error) {
	err = s.again(ctx, func(ctx context.Context) (err error) {
		e, err = s.kv.Get(ctx, key)
		return err
	})
	return e, err
}

// keys lists those below a prefix, with the bucket's own prefix, which it gives too. The stream's leader tells: a watcher reads
// through a consumer, which may live on a replica that is behind.
func (s *natsStore) keys(ctx context.Context, below string) (prefix string, subjects map[string]uint64, err error) {
	prefix = "$KV." + s.bucket + "."
	err = s.again(ctx, func(ctx context.Context) error {
		info, err := s.stream.Info(ctx, jetstream.WithSubjectFilter(prefix+below+">"))
		if err == nil {
			subjects = info.State.Subjects
		}
		return err
	})
	if gone(err) {
		err = nil
	}
	return prefix, subjects, err
}

// again makes a request that may be made twice.
func (s *natsStore) again(ctx context.Context, f func(context.Context) error) error {
	return request.Again(ctx, s.js.Conn(), requestTimeout, f)
}

// gone reports whether the bucket itself was deleted.
func gone(err error) bool {
	return errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrBucketNotFound)
}

// Replicator implements Store.
func (s *natsStore) Replicator(ctx context.Context) (r Replicator, err error) {
	_, err = s.get(ctx, keyReplicator, &r)
	return r, err
}

// PutReplicator implements Store.
func (s *natsStore) PutReplicator(ctx context.Context, r Replicator) error {
	value, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if _, err := s.kv.Put(ctx, keyReplicator, value); err != nil {
		return fmt.Errorf("state: write %s: %w", keyReplicator, err)
	}
	return nil
}

// Workers implements Store.
func (s *natsStore) Workers(ctx context.Context) ([]Worker, error) {
	prefix, subjects, err := s.keys(ctx, keyWorkers)
	if err != nil {
		return nil, fmt.Errorf("state: list workers: %w", err)
	}
	var all []Worker
	for subject := range subjects {
		var w Worker
		_, err := s.get(ctx, strings.TrimPrefix(subject, prefix), &w)
		if errors.Is(err, ErrNotFound) { // deleted
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, w)
	}
	sortWorkers(all)
	return all, nil
}

func sortWorkers(all []Worker) {
	slices.SortFunc(all, func(a, b Worker) int { return cmp.Compare(a.Name, b.Name) })
}

// Worker implements Store.
func (s *natsStore) Worker(ctx context.Context, name string) (w Worker, rev uint64, err error) {
	if err := CheckName(name); err != nil {
		return Worker{}, 0, err
	}
	rev, err = s.get(ctx, keyWorkers+name, &w)
	return w, rev, err
}

// PutWorker implements Store. An error other than ErrConflict leaves open whether it was written:
// read it again.
func (s *natsStore) PutWorker(ctx context.Context, w Worker, rev uint64) (uint64, error) {
	if err := CheckName(w.Name); err != nil {
		return 0, err
	}
	return s.swap(ctx, keyWorkers+w.Name, w, rev)
}

// swap writes a record if its revision is still rev. A write that isn't answered for a while comes again, unless the
// bucket shows that it got there: a request that was lost with its connection is never answered.
func (s *natsStore) swap(ctx context.Context, key string, record any, rev uint64) (uint64, error) {
	value, err := json.Marshal(record)
	if err != nil {
		return 0, fmt.Errorf("state: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	answers := false // what is read, while what is written is lost
	for first := true; ; first = false {
		var now uint64
		now, err = s.write(ctx, key, value, rev)
		lost := errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil
		if lost || !first && conflict(err) {
			e, gerr := s.ask(ctx, key)
			if gerr == nil && bytes.Equal(e.Value(), value) {
				return e.Revision(), nil
			}
			answers = gerr == nil || errors.Is(gerr, jetstream.ErrKeyNotFound)
		}
		switch {
		case lost && ctx.Err() == nil:
		case err == nil:
			return now, nil
		case conflict(err):
			return 0, fmt.Errorf("%w: %s: %w", ErrConflict, key, err)
		case answers && errors.Is(err, context.DeadlineExceeded):
			return 0, fmt.Errorf("state: write %s: NATS answers reads, and no writes: its log says why; if its disk was full, make room and restart it: %w", key, err)
		default:
			return 0, fmt.Errorf("state: write %s: %w", key, err)
		}
	}
}

// write tries once.
func (s *natsStore) write(ctx context.Context, key string, value []byte, rev uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, askAgain)
	defer cancel()
	if rev == 0 {
		return s.kv.Create(ctx, key, value)
	}
	return s.kv.Update(ctx, key, value, rev)
}

// Lease implements Store.
func (s *natsStore) Lease(ctx context.Context, name string) (l Lease, rev uint64, err error) {
	if err := checkLease(name); err != nil {
		return Lease{}, 0, err
	}
	rev, err = s.get(ctx, keyLeases+name, &l)
	return l, rev, err
}

// PutLease implements Store. An error other than ErrConflict leaves open whether it was written.
func (s *natsStore) PutLease(ctx context.Context, l Lease, rev uint64) (uint64, error) {
	if err := checkLease(l.Name); err != nil {
		return 0, err
	}
	return s.swap(ctx, keyLeases+l.Name, l, rev)
}

// conflict reports whether a write failed because the revision is another one.
func conflict(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, jetstream.ErrKeyExists) || errors.As(err, &api) &&
		(api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// DeleteWorker implements Store. The key is purged: a marker without history stays.
func (s *natsStore) DeleteWorker(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if err := s.purge(ctx, keyWorkers+name); err != nil {
		return fmt.Errorf("state: delete worker %s: %w", name, err)
	}
	return nil
}

// purge deletes a key; one that is gone is no error.
func (s *natsStore) purge(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := s.kv.Purge(ctx, key); err != nil && !gone(err) && !errors.Is(err, nats.ErrNoResponders) {
		return err
	}
	return nil
}

// Drop implements Store: it deletes the bucket.
func (s *natsStore) Drop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := s.js.DeleteStream(ctx, "KV_"+s.bucket); err != nil && !gone(err) {
		return fmt.Errorf("state: delete bucket %s: %w", s.bucket, err)
	}
	return nil
}
