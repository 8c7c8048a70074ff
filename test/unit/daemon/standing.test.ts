import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { requireAddon } from '../../support/addon.ts';
import { built } from '../../support/built.ts';
import { requiresRoot } from '../../support/private-bus.ts';
import { runOk } from '../../support/process.ts';
import { temporaryDirectory, temporaryFile } from '../../support/temporary.ts';

/** PF_MEMALLOC_NOIO of a thread's flags (proc_pid_stat(5), field 9). */
const NO_IO = 0x80000;

/** In a process of its own: what it takes on it does not give back. */
const PROGRAM = `
import { readdirSync, readFileSync, openSync } from 'node:fs';
import { claimStanding } from ${JSON.stringify(built('src/daemon/standing.js'))};
import { IoQueue } from ${JSON.stringify(built('src/native/io-queue.js'))};
import { IoVec } from ${JSON.stringify(built('formats/core/iov.js'))};
const [proc, file] = process.argv.slice(2);
const before = new IoQueue({ threads: 2 });
const read = (queue) => Promise.all(Array.from({ length: 64 }, () => queue.readv(fd, 0, IoVec.of(new Uint8Array(4096)))));
const fd = openSync(file, 'r');
await read(before);
const warnings = [];
const log = { debug() {}, info() {}, warn: (_fields, text) => warnings.push(text), error() {} };
await claimStanding(log, proc);
const after = new IoQueue({ threads: 2 });
await read(before);
await read(after);
const flags = readdirSync('/proc/self/task').map((task) => {
  const stat = readFileSync('/proc/self/task/' + task + '/stat', 'utf8');
  return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[6]);
});
console.log(JSON.stringify({ warnings, flushers: flags.filter((value) => (value & ${NO_IO}) !== 0).length }));
await before.close();
await after.close();
`;

async function claimed(t: Parameters<typeof temporaryDirectory>[0]) {
  const proc = await temporaryDirectory(t);
  mkdirSync(proc, { recursive: true });
  writeFileSync(join(proc, 'oom_score_adj'), '0\n');
  const file = await temporaryFile(t, 'data', new Uint8Array(4096));
  const program = await temporaryFile(t, 'program.mjs', PROGRAM);
  const args = [program, proc, file];
  const out = JSON.parse(await runOk(process.execPath, args)) as { warnings: string[]; flushers: number };
  return { ...out, score: readFileSync(join(proc, 'oom_score_adj'), 'utf8'), left: readdirSync(proc) };
}

/** CAP_SYS_RESOURCE, which containers often lack. */
function mayBecomeFlusher(): boolean {
  const [, effective = '0'] = /^CapEff:\s*(\w+)/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
  return ((BigInt(`0x${effective}`) >> 24n) & 1n) === 1n;
}

test('threads that do file I/O, old and new, need no memory that waits for disks, or the log says why not; the process is ended last', {
  skip: requireAddon() || requiresRoot(),
}, async (t) => {
  const { warnings, flushers, score } = await claimed(t);
  if (mayBecomeFlusher()) {
    assert.deepEqual(warnings, []);
    // This thread, one at least of the two that were there, and those of the new queue.
    assert.ok(flushers >= 4, `${flushers} threads`);
  } else {
    assert.equal(flushers, 0);
    assert.match(warnings.join('\n'), /^memory may wait .*EPERM.*CAP_SYS_RESOURCE[^\n]*$/);
  }
  assert.equal(score, '-1000');
});
