import assert from 'node:assert/strict';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Connection } from '../../../src/edge/connection.ts';
import { type ListenAddress, Listener } from '../../../src/edge/listener.ts';
import { ChunkPool, ChunkShare } from '../../../src/wire/chunk-pool.ts';
import { Output } from '../../../src/wire/output.ts';
import { type Cleanup, temporaryDirectory } from '../../support/temporary.ts';

const MiB = 1024 * 1024;

/** Answers each byte that comes with a number of bytes of its value. */
class Echo {
  settled = true;
  closed = '';
  received = 0;
  readonly output: Output;
  readonly edge: Connection<Echo>;
  readonly factor: number;

  constructor(edge: Connection<Echo>, pool: ChunkPool, factor: number) {
    this.edge = edge;
    this.factor = factor;
    this.output = new Output(new ChunkShare(pool, 64 * MiB), edge);
  }

  receive(bytes: Uint8Array, start: number, end: number): void {
    this.received += end - start;
    for (let i = start; i < end; i++) {
      for (let left = this.factor; left > 0; ) {
        const length = Math.min(left, 100_000);
        const { memory } = this.output.ensure(length);
        memory.fill(bytes[i] as number, this.output.at, this.output.at + length);
        this.output.commit(length);
        left -= length;
      }
    }
    // What was read is overwritten by the next connection's bytes: nobody looks at it again.
    bytes.fill(0, start, end);
    this.output.flush();
  }

  wakeUp(): void {
    this.output.flush();
  }

  tick(): void {}

  close(reason: string, graceful = false): void {
    this.closed ||= reason;
    this.edge.close(reason, graceful);
  }

  gone(): void {
    this.closed ||= 'gone';
    this.output.close();
  }
}

async function listen(t: Cleanup, factor: number, where?: ListenAddress) {
  const pool = new ChunkPool(256 * MiB);
  const counters = { connections: 0, openConnections: 0, refusedConnections: 0 };
  const path = join(await temporaryDirectory(t), 's');
  const endpoints: Echo[] = [];
  const listener = new Listener<Echo>({
    listen: where ?? { path },
    limits: { maxConnections: 10, maxPending: 10, pendingTimeoutMs: 60_000 },
    counters,
    endpoint: (edge) => {
      const made = new Echo(edge, pool, factor);
      endpoints.push(made);
      return made;
    },
    late: () => undefined,
    onClosed: () => undefined,
    warn: () => undefined,
  });
  await listener.listen();
  t.after(async () => {
    for (const connection of [...listener.connections]) connection.destroy();
    listener.stopClock();
    await listener.stop();
  });
  const dial = (): Socket => (listener.address === undefined ? connect(path) : connect(listener.address));
  return { listener, endpoints, dial, counters };
}

/** So many bytes of a socket. */
async function take(socket: Socket, length: number): Promise<Buffer> {
  const parts: Buffer[] = [];
  for (let have = 0; have < length; ) {
    const part = socket.read() as Buffer | null;
    if (part === null) await new Promise((resolve) => socket.once('readable', resolve));
    else {
      parts.push(part);
      have += part.length;
    }
  }
  return Buffer.concat(parts);
}

for (const [name, where] of [
  ['a unix socket', undefined],
  ['TCP', { host: '127.0.0.1', port: 0 }],
] as const) {
  test(`${name}: bytes come and go in order, also when the peer takes its time, and several connections do not mix`, async (t) => {
    const { dial, endpoints } = await listen(t, 500_000, where);
    const sockets = [dial(), dial()];
    t.after(() => {
      for (const socket of sockets) socket.destroy();
    });
    const values = Array.from({ length: 20 }, (_, i) => i + 1);
    // Nobody reads yet: far more is answered than sockets hold.
    for (const value of values) for (const socket of sockets) socket.write(Buffer.from([value]));
    for (let i = 0; i < 500 && endpoints.some(({ received }) => received < 20); i++) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    assert.ok(
      endpoints.every(({ output }) => output.queued > MiB),
      'it waits in our memory',
    );
    const expected = Buffer.concat(values.map((value) => Buffer.alloc(500_000, value)));
    const found = await Promise.all(sockets.map((socket) => take(socket, expected.length)));
    for (const bytes of found) assert.ok(bytes.equals(expected));
    for (let i = 0; i < 500 && endpoints.some(({ output }) => output.queued > 0); i++) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    assert.deepEqual(
      endpoints.map(({ output }) => [output.queued, output.sent]),
      [
        [0, expected.length],
        [0, expected.length],
      ],
    );
  });
}

test('closing in order sends what is left first, closing at once does not; memory comes back either way', async (t) => {
  const { dial, endpoints, listener } = await listen(t, 8 * MiB);
  for (const graceful of [true, false]) {
    const socket = dial();
    socket.write('ab');
    const echo = await (async () => {
      for (;;) {
        const last = endpoints.at(graceful ? 0 : 1);
        if (last !== undefined && last.received === 2) return last;
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    })();
    assert.ok(echo.output.queued > 8 * MiB);
    echo.close('over', graceful);
    let length = 0;
    socket.on('data', (chunk) => {
      length += chunk.length;
    });
    socket.on('error', () => undefined);
    await new Promise((resolve) => socket.once('close', resolve));
    if (graceful) assert.equal(length, 16 * MiB);
    else assert.ok(length < 16 * MiB);
    for (let i = 0; i < 200 && (listener.connections.size > 0 || echo.output.queued > 0); i++) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    assert.deepEqual([listener.connections.size, echo.output.queued], [0, 0]);
  }
});

test('no bytes come while it is paused, and all of them afterwards; the end of the peer is noticed', async (t) => {
  const { dial, endpoints, listener } = await listen(t, 1);
  const socket = dial();
  socket.write('a');
  await take(socket, 1);
  const [echo] = endpoints as [Echo];
  echo.edge.pause();
  socket.write('bcd');
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(echo.received, 1);
  echo.edge.resume();
  assert.equal((await take(socket, 3)).toString(), 'bcd');
  socket.end();
  for (let i = 0; i < 200 && listener.connections.size > 0; i++)
    await new Promise((resolve) => setTimeout(resolve, 10));
  assert.match(echo.closed, /peer closed/);
  assert.equal(listener.connections.size, 0);
});

test('a connection that its peer resets ends with that reason', async (t) => {
  const { dial, endpoints, listener } = await listen(t, 1, { host: '127.0.0.1', port: 0 });
  const socket = dial();
  socket.write('a');
  await take(socket, 1);
  socket.resetAndDestroy();
  for (let i = 0; i < 500 && listener.connections.size > 0; i++) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.match(endpoints[0]?.closed ?? '', /ECONNRESET|reset/);
});
