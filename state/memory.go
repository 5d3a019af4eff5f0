package state

import (
	"context"
	"fmt"
	"sync"
)

// Memory is a Store that ends with the process: for tests, and for whoever keeps no state.
type Memory struct {
	mu         sync.Mutex
	revision   uint64 // of the last write, of any record
	replicator *Replicator
	workers    map[string]memoryWorker
	leases     map[string]memoryLease
	tables     []Table // in the order of their OIDs
	resync     Resync
	resyncRev  uint64
	adopted    *Adopted
}

type memoryWorker struct {
	w   Worker
	rev uint64
}

type memoryLease struct {
	l   Lease
	rev uint64
}

var _ Store = (*Memory)(nil)

// NewMemory makes an empty store.
func NewMemory() *Memory {
	return &Memory{workers: map[string]memoryWorker{}, leases: map[string]memoryLease{}}
}

// Replicator implements Store.
func (m *Memory) Replicator(ctx context.Context) (Replicator, error) {
	if err := ctx.Err(); err != nil {
		return Replicator{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.replicator == nil {
		return Replicator{}, fmt.Errorf("%w: replicator", ErrNotFound)
	}
	return *m.replicator, nil
}

// PutReplicator implements Store.
func (m *Memory) PutReplicator(ctx context.Context, r Replicator) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision++
	m.replicator = &r
	return nil
}

// Workers implements Store.
func (m *Memory) Workers(ctx context.Context) ([]Worker, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Worker
	for _, w := range m.workers {
		all = append(all, w.w)
	}
	sortWorkers(all)
	return all, nil
}

// Worker implements Store.
func (m *Memory) Worker(ctx context.Context, name string) (Worker, uint64, error) {
	if err := firstError(ctx.Err(), CheckName(name)); err != nil {
		return Worker{}, 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	w, ok := m.workers[name]
	if !ok {
		return Worker{}, 0, fmt.Errorf("%w: worker %s", ErrNotFound, name)
	}
	return w.w, w.rev, nil
}

// PutWorker implements Store.
func (m *Memory) PutWorker(ctx context.Context, w Worker, rev uint64) (uint64, error) {
	if err := firstError(ctx.Err(), CheckName(w.Name)); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if is := m.workers[w.Name].rev; is != rev {
		return 0, fmt.Errorf("%w: worker %s is at revision %d, not %d", ErrConflict, w.Name, is, rev)
	}
	m.revision++
	m.workers[w.Name] = memoryWorker{w: w, rev: m.revision}
	return m.revision, nil
}

// DeleteWorker implements Store.
func (m *Memory) DeleteWorker(ctx context.Context, name string) error {
	if err := firstError(ctx.Err(), CheckName(name)); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision++
	delete(m.workers, name)
	return nil
}

// Drop implements Store.
func (m *Memory) Drop(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision++
	m.replicator = nil
	clear(m.workers)
	clear(m.leases)
	m.tables, m.resync, m.resyncRev, m.adopted = nil, Resync{}, 0, nil
	return nil
}

// Lease implements Store.
func (m *Memory) Lease(ctx context.Context, name string) (Lease, uint64, error) {
	if err := firstError(ctx.Err(), checkLease(name)); err != nil {
		return Lease{}, 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	l, ok := m.leases[name]
	if !ok {
		return Lease{}, 0, fmt.Errorf("%w: lease %s", ErrNotFound, name)
	}
	return l.l, l.rev, nil
}

// PutLease implements Store.
func (m *Memory) PutLease(ctx context.Context, l Lease, rev uint64) (uint64, error) {
	if err := firstError(ctx.Err(), checkLease(l.Name)); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if is := m.leases[l.Name].rev; is != rev {
		return 0, fmt.Errorf("%w: lease %s is at revision %d, not %d", ErrConflict, l.Name, is, rev)
	}
	m.revision++
	m.leases[l.Name] = memoryLease{l: l, rev: m.revision}
	return m.revision, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
