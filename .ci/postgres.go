// Command postgres says which PostgreSQL the tests will use, or what to install.
package main

import (
	"fmt"
	"os"

	"github.com/pgflo/flo/flotest"
)

func main() {
	dir, err := flotest.FindBinaries()
	if err == nil {
		_, err = flotest.Pgbench()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("PostgreSQL in", dir)
}
