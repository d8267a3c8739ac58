package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"sync"

	"github.com/tombolo-mesh/tombolo/agent/policy/trace"
)

const (
	batchLines = 256      // answered at once, if so many wait
	maxLine    = 64 << 10 // bytes of a question
)

// chunk is some lines of questions, then of answers.
type chunk struct {
	lines [][]byte
	out   []byte
	sum   tally
	err   error
	done  chan struct{}
}

// tally of a batch.
type tally struct{ answered, denied, failed int }

func (t *tally) add(b trace.Brief) {
	t.answered++
	switch {
	case b.Error != "":
		t.failed++
	case b.Verdict == trace.Denied:
		t.denied++
	}
}

// answerer answers a chunk. It is for one goroutine.
type answerer func(ctx context.Context, c *chunk)

// traceBatch answers standard input line by line: one goroutine reads, several
// answer, each in a world of its own, and this one writes in the order read.
func (c *cli) traceBatch(ctx context.Context, from folders, exitCode bool) error {
	workers, done, err := c.answerers(from)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	work, order := make(chan *chunk), make(chan *chunk, 2*len(workers))
	for _, answer := range workers {
		group.Go(func() {
			for ch := range work {
				answer(ctx, ch)
				close(ch.done)
			}
		})
	}
	readErr := make(chan error, 1)
	// Not waited for: a read from a terminal does not end with ctx.
	go func() {
		defer close(order)
		defer close(work)
		readErr <- readChunks(c.env.Stdin, func(ch *chunk) bool {
			for _, to := range []chan *chunk{work, order} {
				select {
				case to <- ch:
				case <-ctx.Done():
					return false
				}
			}
			return true
		})
	}()
	sum, err := c.writeChunks(ctx, order)
	if err == nil {
		err = <-readErr
	}
	if sum.failed > 0 {
		fmt.Fprintf(c.env.Stderr, "%d of %s could not be answered\n", sum.failed, count(sum.answered, "question"))
	}
	if err == nil && exitCode && sum.denied+sum.failed > 0 {
		return errAnswered
	}
	return err
}

// writeChunks writes answers as they become ready, in order.
func (c *cli) writeChunks(ctx context.Context, order <-chan *chunk) (tally, error) {
	var sum tally
	out := bufio.NewWriterSize(c.env.Stdout, 64<<10)
	for {
		var ch *chunk
		select {
		case ch = <-order:
		default: // nothing is ready: who waits for answers gets those there are
			if err := out.Flush(); err != nil {
				return sum, err
			}
			select {
			case ch = <-order:
			case <-ctx.Done():
				return sum, ctx.Err()
			}
		}
		if ch == nil {
			return sum, out.Flush()
		}
		select {
		case <-ch.done:
		case <-ctx.Done():
			return sum, errors.Join(ctx.Err(), out.Flush())
		}
		if ch.err != nil {
			return sum, errors.Join(ch.err, out.Flush())
		}
		sum.answered += ch.sum.answered
		sum.denied += ch.sum.denied
		sum.failed += ch.sum.failed
		if _, err := out.Write(ch.out); err != nil {
			return sum, err
		}
	}
}

// readChunks cuts the input into chunks: of many lines when many are there, of one
// when somebody waits for its answer.
func readChunks(in io.Reader, give func(*chunk) bool) error {
	r := bufio.NewReaderSize(in, maxLine)
	for ch := newChunk(); ; {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			line = nil // its answer says that it is too long
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = r.ReadSlice('\n')
			}
			ch.lines = append(ch.lines, nil)
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			ch.lines = append(ch.lines, bytes.Clone(line))
		}
		if len(ch.lines) > 0 && (err != nil || len(ch.lines) == batchLines || r.Buffered() == 0) {
			if !give(ch) {
				return nil
			}
			ch = newChunk()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("standard input: %w", err)
		}
	}
}

func newChunk() *chunk { return &chunk{done: make(chan struct{})} }

// answerers are as many as there are processors; one alone for an agent.
func (c *cli) answerers(from folders) ([]answerer, func(), error) {
	if !from.given() {
		return []answerer{c.askAgent}, func() {}, nil
	}
	again, err := from.read()
	if err != nil {
		return nil, nil, err
	}
	var out []answerer
	for range runtime.GOMAXPROCS(0) {
		w, err := again()
		if err != nil {
			return nil, nil, err
		}
		out = append(out, func(_ context.Context, ch *chunk) { answerIn(w, ch) })
	}
	return out, func() {}, nil
}

func answerIn(w trace.World, ch *chunk) {
	for _, line := range ch.lines {
		ch.answer(trace.Line(w, line))
	}
}

func (ch *chunk) answer(b trace.Brief) {
	ch.sum.add(b)
	text, err := json.Marshal(b)
	if err != nil { // only an id can be what no JSON is, and that was read as JSON
		text, _ = json.Marshal(trace.Brief{Error: err.Error()})
	}
	ch.out = append(append(ch.out, escapeJSON(string(text))...), '\n')
}

// askAgent has the agent answer. What it refuses ends the batch.
func (c *cli) askAgent(ctx context.Context, ch *chunk) {
	var body []byte
	for _, line := range ch.lines {
		if line == nil {
			line = []byte(`{"from":"","to":""}`) // answered here, below
		}
		body = append(append(body, line...), '\n')
	}
	text, err := c.ask(ctx, http.MethodPost, "/v1/policy/trace?batch=1", body)
	if err != nil {
		ch.err = err
		return
	}
	for line := range bytes.Lines(text) {
		var b trace.Brief
		if err := json.Unmarshal(line, &b); err != nil {
			ch.err = fmt.Errorf("answer of the agent is not understood (another version?): %w", err)
			return
		}
		if n := ch.sum.answered; n < len(ch.lines) && ch.lines[n] == nil {
			b = trace.Line(nil, nil)
		}
		ch.answer(b)
	}
	if ch.sum.answered != len(ch.lines) {
		ch.err = fmt.Errorf("the agent gave %d answers to %d questions", ch.sum.answered, len(ch.lines))
	}
}
