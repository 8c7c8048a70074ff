/** The kernel's side of a TCMU device, played by a process of its own: see native/mock_kernel.cc. */

import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { closeSync, constants, existsSync, ftruncateSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { runOk } from './process.ts';
import { buildProgram } from './sanitized.ts';
import { type Cleanup, temporaryDirectory } from './temporary.ts';

/** What came back for a command. */
export interface MockOutcome {
  readonly id: number;
  readonly status: number;
  /** Flags of the response. */
  readonly flags: number;
  readonly readLength: number;
  readonly sense: Buffer;
  /** What the kernel would hand to the initiator. */
  readonly data: Buffer;
}

export interface MockOptions {
  readonly regionSize?: number;
  readonly ringSize?: number;
  /** The mailbox's flags. Default: all that Linux 6.1 has. */
  readonly flags?: number;
}

/** A TCMU device without a kernel. */
export class MockTcmu {
  readonly regionSize: number;
  readonly memoryFd: number;
  readonly eventFd: number;
  readonly kickFd: number;
  /** Of the memory, and of the pipes for wakeups of either side, for a process of its own. */
  readonly paths: readonly [string, string, string];
  readonly #process: ChildProcessByStdio<Writable, Readable, null>;
  readonly #lines: AsyncIterator<string>;
  /** Completions that came while something else was waited for. */
  readonly #outcomes = new Map<number, MockOutcome>();

  private constructor(
    regionSize: number,
    fds: readonly [number, number, number],
    paths: readonly [string, string, string],
    child: ChildProcessByStdio<Writable, Readable, null>,
  ) {
    this.regionSize = regionSize;
    [this.memoryFd, this.eventFd, this.kickFd] = fds;
    this.paths = paths;
    this.#process = child;
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  }

  static async start(t: Cleanup, options: MockOptions = {}): Promise<MockTcmu> {
    const { regionSize = 4 * 1024 * 1024, ringSize = 64 * 1024, flags = 15 } = options;
    const program = await buildProgram('mock_kernel', [], 'none');
    // In memory, where there is a file system of it: the region is memory, too.
    const folder = await temporaryDirectory(t, existsSync('/dev/shm') ? '/dev/shm' : undefined);
    const [memory, events, kicks] = ['memory', 'events', 'kicks'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    await runOk('mkfifo', [events, kicks]);
    const memoryFd = openSync(memory, 'w+');
    ftruncateSync(memoryFd, regionSize);
    const both = constants.O_RDWR | constants.O_NONBLOCK;
    const fds = [memoryFd, openSync(events, both), openSync(kicks, both)] as const;
    const args = [memory, events, kicks, regionSize, ringSize, flags].map(String);
    const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'] });
    t.after(() => {
      child.kill('SIGKILL');
      for (const fd of fds) closeSync(fd);
    });
    const mock = new MockTcmu(regionSize, fds, [memory, events, kicks], child);
    await mock.#expect('ready');
    return mock;
  }

  /** Sends a command with room for data-in. @returns its id */
  async sendIn(cdb: ArrayLike<number>, length = 0): Promise<number> {
    return this.#send(`send ${hex(cdb)} in ${length}`);
  }

  /** Sends a command with data-out. @returns its id */
  async sendOut(cdb: ArrayLike<number>, data: Uint8Array): Promise<number> {
    return this.#send(`send ${hex(cdb)} out ${hex(data)}`);
  }

  /** Sends a command whose buffer is outside of the data area. */
  async sendMalformed(): Promise<number> {
    return this.#send('malformed');
  }

  /** Sends an entry of so many bytes (a multiple of 8) with an opcode that nobody knows. @returns its id */
  async sendUnknown(length: number): Promise<number> {
    return this.#send(`unknown ${length}`);
  }

  /** The outcome of a command, when it is there. */
  async outcome(id: number): Promise<MockOutcome> {
    for (;;) {
      const known = this.#outcomes.get(id);
      if (known !== undefined) {
        this.#outcomes.delete(id);
        return known;
      }
      this.#note(await this.#line());
    }
  }

  /** Sends, and waits for the outcome. */
  async in(cdb: ArrayLike<number>, length = 0): Promise<MockOutcome> {
    return this.outcome(await this.sendIn(cdb, length));
  }

  async out(cdb: ArrayLike<number>, data: Uint8Array): Promise<MockOutcome> {
    return this.outcome(await this.sendOut(cdb, data));
  }

  /** Task management: says that these commands are given up. */
  abort(type: number, ...ids: number[]): void {
    this.#process.stdin.write(`abort ${type} ${ids.join(' ')}\n`);
  }

  /** action/reset_ring */
  async reset(): Promise<void> {
    this.#process.stdin.write('reset\n');
    await this.#expect('reset');
    this.#outcomes.clear();
  }

  /** Random READ(16), or WRITE(16), of `bytes` within the first `span` bytes. @returns seconds, completions, failures, and what 99 % did not exceed */
  async bench(options: {
    readonly operations: number;
    readonly depth: number;
    readonly bytes: number;
    readonly span: number;
    readonly seed: number;
    readonly writes?: boolean;
  }): Promise<{ seconds: number; done: number; failed: number; p99Us: number }> {
    const { operations, depth, bytes, span, seed, writes = false } = options;
    this.#process.stdin.write(`bench${writes ? 'write' : ''} ${operations} ${depth} ${bytes} ${span} ${seed}\n`);
    const [, seconds = 0, done = 0, failed = 0, p99Us = 0] = (await this.#expect('bench ')).split(' ').map(Number);
    return { seconds, done, failed, p99Us };
  }

  /**
   * Random commands, plausible ones among them, with malformed entries and aborts between them.
   *
   * @returns what was completed, how much of it with GOOD, and how often data-in held what belongs to others
   */
  async fuzz(options: { readonly operations: number; readonly depth: number; readonly seed: number }): Promise<{
    seconds: number;
    done: number;
    good: number;
    stale: number;
  }> {
    const { operations, depth, seed } = options;
    this.#process.stdin.write(`fuzz ${operations} ${depth} ${seed}\n`);
    const [, seconds = 0, done = 0, good = 0, stale = 0] = (await this.#expect('fuzz ')).split(' ').map(Number);
    return { seconds, done, good, stale };
  }

  async #send(line: string): Promise<number> {
    this.#process.stdin.write(`${line}\n`);
    return Number((await this.#expect('sent ')).split(' ')[1]);
  }

  async #expect(start: string): Promise<string> {
    for (;;) {
      const line = await this.#line();
      if (line.startsWith(start)) return line;
      this.#note(line);
    }
  }

  async #line(): Promise<string> {
    const { value, done } = await this.#lines.next();
    if (done === true) throw new Error('the mock kernel has ended');
    return value;
  }

  #note(line: string): void {
    if (line === 'broken' || line === 'full') throw new Error(`the mock kernel says: ${line}`);
    const [id, status, flags, readLength, sense = '-', data = '-'] = line.split(' ');
    const bytes = (text: string): Buffer => (text === '-' ? Buffer.alloc(0) : Buffer.from(text, 'hex'));
    this.#outcomes.set(Number(id), {
      id: Number(id),
      status: Number(status),
      flags: Number(flags),
      readLength: Number(readLength),
      sense: bytes(sense),
      data: bytes(data),
    });
  }
}

function hex(bytes: ArrayLike<number>): string {
  return bytes.length === 0 ? '-' : Buffer.from(Uint8Array.from(bytes)).toString('hex');
}
