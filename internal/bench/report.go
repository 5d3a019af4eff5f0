package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"time"
)

// line is a result as it is printed. Times are in seconds.
type line struct {
	Group      string  `json:"group"`
	Name       string  `json:"name"`
	Wall       float64 `json:"wall_s"`
	Rate       float64 `json:"changes_per_s,omitempty"`
	Ratio      float64 `json:"ratio"` // of the yardstick's time
	Goal       float64 `json:"goal,omitempty"`
	Met        *bool   `json:"met,omitempty"`
	FloCPU     float64 `json:"flo_cpu_s,omitempty"`
	SourceCPU  float64 `json:"source_cpu_s"`
	TargetCPU  float64 `json:"destination_cpu_s"`
	PeakMemory int64   `json:"peak_memory_bytes,omitempty"`
	P50        float64 `json:"p50_s,omitempty"`
	P99        float64 `json:"p99_s,omitempty"`
	Why        string  `json:"why,omitempty"`
}

// lines gives the medians, each beside its group's first.
func (b *bench) lines() []line {
	var lines []line
	first := map[string]*result{}
	for _, r := range b.results {
		if first[r.group] == nil {
			first[r.group] = r
		}
		base := first[r.group]
		l := line{
			Group: r.group, Name: r.name, Wall: median(r.walls).Seconds(), Goal: r.goal,
			SourceCPU: median(r.source).Seconds(), TargetCPU: median(r.target).Seconds(),
			P50: quantile(r.latencies, 0.5).Seconds(), P99: quantile(r.latencies, 0.99).Seconds(),
		}
		if r.ours {
			l.FloCPU, l.PeakMemory = median(r.flo).Seconds(), r.peak
		}
		l.Ratio = l.Wall / median(base.walls).Seconds()
		met := l.Ratio <= r.goal
		if r.latencies == nil {
			l.Rate = float64(r.changes) / l.Wall
		} else {
			l.Ratio = l.P50 / quantile(base.latencies, 0.5).Seconds()
			met = l.P50 <= quantile(base.latencies, 0.5).Seconds()+latencyAbove.Seconds() && l.P99 <= latencyMost.Seconds()
		}
		if r.goal > 0 {
			l.Met = &met
			if !met {
				l.Why = r.why(l)
			}
		}
		lines = append(lines, l)
	}
	return lines
}

// Goals of latency: so much above the native p50, and p99 at most.
const (
	latencyAbove = 3 * time.Millisecond
	latencyMost  = 25 * time.Millisecond
)

// why says where a missed goal's time went: who was busy for how much of it.
func (r *result) why(l line) string {
	s := fmt.Sprintf("of %.2f s flo and JetStream computed %.2f s, the source's server %.2f s, the destination's %.2f s, on %d CPUs",
		l.Wall, l.FloCPU, l.SourceCPU, l.TargetCPU, runtime.NumCPU())
	if r.profile != "" {
		s += "; go tool pprof -top " + r.profile
	}
	return s
}

// report prints the medians as a table, the goals that were missed, and JSON.
func (b *bench) report(ctx context.Context) error {
	lines := b.lines()
	if b.json == "-" {
		return b.encode(ctx, os.Stdout, lines)
	}
	fmt.Printf("\n%d rows of %s each, medians of %d; %s, %d CPUs, %s\n\n", b.rows, b.rowSize(ctx), b.runs, b.version(ctx), runtime.NumCPU(), runtime.Version())
	fmt.Println("| group | what | wall | changes/s | beside the first | CPU flo + source + destination | peak memory | goal |")
	fmt.Println("|---|---|---|---|---|---|---|---|")
	for _, l := range lines {
		rate, goal, peak, cpu := fmt.Sprintf("%.0f", l.Rate), "", "", fmt.Sprintf("%.2f + %.2f s", l.SourceCPU, l.TargetCPU)
		if l.P50 > 0 {
			rate = fmt.Sprintf("p50 %.2f ms, p99 %.2f ms", l.P50*1e3, l.P99*1e3)
		}
		if l.FloCPU > 0 {
			cpu = fmt.Sprintf("%.2f + ", l.FloCPU) + cpu
			peak = fmt.Sprintf("%d MB", l.PeakMemory>>20)
		}
		if l.Met != nil {
			goal = fmt.Sprintf("%.2g: ", l.Goal) + map[bool]string{true: "met", false: "missed"}[*l.Met]
		}
		fmt.Printf("| %s | %s | %.2f s | %s | %.2f × | %s | %s | %s |\n", l.Group, l.Name, l.Wall, rate, l.Ratio, cpu, peak, goal)
	}
	for _, l := range lines {
		if l.Why != "" {
			fmt.Printf("\nmissed: %s, %s: %s\n", l.Group, l.Name, l.Why)
		}
	}
	if b.json == "" {
		return nil
	}
	f, err := os.Create(b.json)
	if err != nil {
		return err
	}
	defer f.Close()
	return b.encode(ctx, f, lines)
}

func (b *bench) encode(ctx context.Context, f *os.File, lines []line) error {
	e := json.NewEncoder(f)
	e.SetIndent("", "  ")
	return e.Encode(map[string]any{
		"rows": b.rows, "rows_per_transaction": b.perTx, "runs": b.runs, "row": b.rowSize(ctx),
		"postgresql": b.version(ctx), "go": runtime.Version(), "cpus": runtime.NumCPU(), "results": lines,
	})
}
