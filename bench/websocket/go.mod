module github.com/rabbit-backend/tcpio/bench/websocket

go 1.26.0

replace (
	github.com/rabbit-backend/tcpio => ../..
	github.com/rabbit-backend/tcpio/websocket => ../../websocket
)

require (
	github.com/coder/websocket v1.8.15
	github.com/gobwas/ws v1.5.0
	github.com/gorilla/websocket v1.5.3
	github.com/lesismal/llib v1.2.4
	github.com/lesismal/nbio v1.6.12
	github.com/lxzan/gws v1.8.9
	github.com/rabbit-backend/tcpio v0.0.0
	github.com/rabbit-backend/tcpio/websocket v0.0.0
	golang.org/x/sync v0.24.0
	golang.org/x/sys v0.49.0
)

require (
	github.com/dolthub/maphash v0.1.0 // indirect
	github.com/gobwas/httphead v0.1.0 // indirect
	github.com/klauspost/compress v1.17.9 // indirect
	golang.org/x/crypto v0.0.0-20210513122933-cd7d49e622d5 // indirect
)
