import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { run, runOk, start } from '../../support/process.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const node = (script: string): string[] => ['-e', script];

test('run gives status and both outputs, and feeds standard input', async () => {
  const result = await run(
    process.execPath,
    node(
      "process.stdin.on('data', (d) => console.log('in ' + d)).on('end', () => { console.error('bad'); process.exit(3); })",
    ),
    { input: 'abc' },
  );
  assert.deepEqual(result, { status: 3, signal: null, stdout: 'in abc\n', stderr: 'bad\n' });
});

test('runOk throws what the program printed when it fails', async () => {
  await assert.rejects(
    runOk(process.execPath, node("console.error('why not'); process.exit(1)")),
    /status 1.*why not/s,
  );
});

test('run kills a program that outlives its time', async () => {
  await assert.rejects(run(process.execPath, node('setInterval(() => {}, 1000)'), { timeoutMs: 200 }), /still running/);
});

test('a program that does not exist rejects instead of hanging', async () => {
  await assert.rejects(run('lunette-no-such-program', []), { code: 'ENOENT' });
});

test('waitForLine gives the match of a line that comes in pieces', async (t) => {
  const child = start(
    t,
    process.execPath,
    node("process.stdout.write('rea'); setTimeout(() => console.log('dy 42'), 50); setInterval(() => {}, 1000)"),
  );
  const match = await child.waitForLine(/^ready (\d+)$/);
  assert.equal(match[1], '42');
  assert.deepEqual(await child.stop(), { status: -1, signal: 'SIGTERM' });
});

test('waitForLine fails with the output when the program ends without the line', async (t) => {
  const child = start(t, process.execPath, node("console.log('something else')"));
  await assert.rejects(child.waitForLine(/^ready/), /has ended.*something else/s);
});

test('a program and a directory go away with the test that made them', async (t) => {
  let pid = 0;
  let directory = '';
  await t.test('inner', async (inner) => {
    directory = await temporaryDirectory(inner);
    pid = start(inner, process.execPath, node('setInterval(() => {}, 1000)')).pid;
  });
  assert.throws(() => process.kill(pid, 0), { code: 'ESRCH' });
  assert.equal(existsSync(directory), false);
});
