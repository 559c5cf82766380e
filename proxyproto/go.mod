module github.com/rabbit-backend/tcpio/proxyproto

go 1.26.0

replace github.com/rabbit-backend/tcpio => ../

require (
	github.com/pires/go-proxyproto v0.15.0
	github.com/rabbit-backend/tcpio v0.0.0-00010101000000-000000000000
)

require (
	golang.org/x/sync v0.22.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
)
