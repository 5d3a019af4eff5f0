package pack

import "runtime"

// hugeBytes is from where on a buffer is huge: a row of that size alone fills it.
const hugeBytes = 16 << 20

// CollectBefore collects garbage before a huge buffer of n bytes is made. The buffers of the last huge
// row are garbage by then, and the collector's usual pace would let as much again pile up: peaks would
// be several times the row. Rows of that size are rare, so that is cheap; other buffers pass at once.
func CollectBefore(n int) {
	if n >= hugeBytes {
		runtime.GC()
	}
}
