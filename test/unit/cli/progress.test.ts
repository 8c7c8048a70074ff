import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { CliContext } from '../../../src/cli/context.ts';
import { createProgress, durationText, progressBar, progressLine } from '../../../src/cli/progress.ts';

const MIB = 1024 * 1024;

/** A context that keeps what is written. */
function contextWith(isTerminal: boolean, columns?: number) {
  const written = { stdout: '', stderr: '' };
  const output = (name: 'stdout' | 'stderr') => ({
    isTerminal,
    columns,
    write: (text: string) => {
      written[name] += text;
    },
  });
  const context: CliContext = {
    stdout: output('stdout'),
    stderr: output('stderr'),
    env: {},
    interrupts: { once: () => () => undefined },
    privileged: false,
  };
  return { context, written };
}

test('without -p nothing is printed, nor with -q', () => {
  for (const options of [{}, { progress: true, quiet: true }]) {
    const { context, written } = contextWith(true);
    const progress = createProgress(context, options, { total: 100 });
    progress.update(50);
    progress.end();
    assert.deepEqual(written, { stdout: '', stderr: '' });
  }
});

test('a file or a pipe gets at most one line a second, and one at the end', () => {
  const { context, written } = contextWith(false);
  let now = 0;
  const progress = createProgress(context, { progress: true }, { label: 'copying', total: 100 * MIB, now: () => now });
  for (let i = 0; i <= 40; i++) {
    now = i * 100;
    progress.update(i * MIB);
  }
  progress.end();
  progress.end();
  assert.deepEqual(written.stdout.split('\n'), [
    'copying (10.00/100%) 10 MiB of 100 MiB, 10 MiB/s, 0:09 left',
    'copying (20.00/100%) 20 MiB of 100 MiB, 10 MiB/s, 0:08 left',
    'copying (30.00/100%) 30 MiB of 100 MiB, 10 MiB/s, 0:07 left',
    'copying (40.00/100%) 40 MiB of 100 MiB, 10 MiB/s, 0:06 left',
    'copying (40.00/100%) 40 MiB, 10 MiB/s, 0:04',
    '',
  ]);
  assert.equal(written.stderr, '');
});

test('with JSON on stdout the progress is on stderr', () => {
  const { context, written } = contextWith(false);
  const progress = createProgress(context, { progress: true, json: true }, { total: 10 });
  progress.update(10);
  progress.end();
  assert.equal(written.stdout, '');
  assert.match(written.stderr, /^\(100\.00\/100%\) 10 B/);
});

test('a terminal gets one line that is written over, never wider than it is, and ended once', () => {
  for (const columns of [20, 40, 80, 200]) {
    const { context, written } = contextWith(true, columns);
    let now = 0;
    const progress = createProgress(context, { progress: true }, { label: 'copying', total: 3 * MIB, now: () => now });
    for (let i = 0; i <= 30; i++) {
      now = i * 100;
      progress.update((i * MIB) / 10);
    }
    progress.end();
    const lines = written.stdout.replaceAll('\x1b[K', '').split('\r');
    assert.ok(lines.length > 20);
    for (const line of lines) assert.ok(line.trimEnd().length < columns, line);
    assert.equal(written.stdout.match(/\n/g)?.length, 1);
    assert.ok(written.stdout.endsWith('\n'));
  }
});

test('the bar is full only at the end, and 100 % is said only then', () => {
  const facts = { label: '', total: 100_000, speed: 10, seconds: 5 };
  assert.match(progressBar({ ...facts, done: 99_999 }, false, 100), /^\(99\.99\/100%\) \[/);
  assert.match(progressBar({ ...facts, done: 100_000 }, true, 100), /^\(100\.00\/100%\) \[=+\] /);
  assert.match(progressBar({ ...facts, done: 0 }, false, 100), /^\( 0\.00\/100%\) \[ +\] /);
});

test('speed is that of the last seconds, not that of the beginning', () => {
  const { context, written } = contextWith(false);
  let now = 0;
  const progress = createProgress(context, { progress: true }, { total: 1000 * MIB, now: () => now });
  for (let i = 1; i <= 30; i++) {
    now = i * 1000;
    progress.update((i <= 10 ? i * 50 : 500 + (i - 10)) * MIB); // slow after ten seconds
  }
  progress.end();
  assert.match(written.stdout.split('\n')[28] as string, /, 1 MiB\/s, /);
});

test('an unknown total shows what is done, without a share of nothing', () => {
  assert.equal(
    progressLine({ label: 'reading', done: 5 * MIB, total: undefined, speed: MIB, seconds: 5 }, false),
    'reading 5 MiB, 1 MiB/s',
  );
  assert.equal(
    progressLine({ label: '', done: 0, total: 0, speed: undefined, seconds: 0 }, true),
    '(100.00/100%) 0 B, 0:00',
  );
});

test('durations have hours only where there are any', () => {
  assert.deepEqual([0, 6.2, 754, 11_045, 200_000, Number.POSITIVE_INFINITY].map(durationText), [
    '0:00',
    '0:07',
    '12:34',
    '3:04:05',
    '2 days 7 h',
    'more than 99 days',
  ]);
});
