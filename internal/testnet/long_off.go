//go:build !long

package testnet

// Long says that tests run at their full length: go test -tags long ./..., which CI does.
const Long = false
