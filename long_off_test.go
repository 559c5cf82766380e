//go:build !long

package tcpio

// longTests says that tests run at their full length: go test -tags long ./..., which CI does.
const longTests = false
