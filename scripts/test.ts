/**
 * Runs the tests, group by group, and closes with one line that counts them:
 * `N passed, N failed, N skipped`. Groups are directories of test/; docs/testing.md says what each is for.
 *
 *   node --import tsx scripts/test.ts                    everything: packages, lint, types, all groups
 *   node --import tsx scripts/test.ts --quick            lint, types, tidy and unit
 *   node --import tsx scripts/test.ts unit fuzz          these groups only
 */

import { spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { GROUPS, type Group } from './test-groups.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
/** Debian's ccache has compilers under their own names here. */
const COMPILER_CACHE = '/usr/lib/ccache';

interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

const { values, positionals } = parseArgs({ options: { quick: { type: 'boolean' } }, allowPositionals: true });
for (const name of positionals) {
  if (!GROUPS.some((group) => group.name === name)) {
    console.error(`no group ${name}: ${GROUPS.map((group) => group.name).join(', ')}`);
    process.exit(2);
  }
}

const chosen =
  positionals.length > 0
    ? GROUPS.filter((group) => positionals.includes(group.name))
    : GROUPS.filter((group) => group.quick || values.quick !== true);
const total: Counts = { passed: 0, failed: 0, skipped: 0 };
const broken: string[] = [];

if (positionals.length === 0) {
  if (values.quick !== true) await step('packages', join(root, 'scripts/install-test-packages'), []);
  await step('lint', 'npm', ['run', '--silent', 'lint']);
  await step('types', 'npm', ['run', '--silent', 'types']);
}
// Once, for all files that run the program.
await step('build', process.execPath, [join(root, 'scripts/build.mjs'), '--if-stale']);
// Installations compile packages that npm ci has compiled already, with all processors: node-gyp has one of them unless told.
if (existsSync(COMPILER_CACHE)) process.env.PATH = `${COMPILER_CACHE}:${process.env.PATH}`;
process.env.CCACHE_DIR ??= join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'ccache');
process.env.JOBS ??= 'max';
for (const group of chosen) await runGroup(group);

if (broken.length > 0) console.log(`\nbroken: ${broken.join('; ')}`);
console.log(`\n${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
process.exitCode = broken.length > 0 || total.failed > 0 || total.passed === 0 ? 1 : 0;

/** Runs a program that must succeed, its output shown. */
async function step(name: string, program: string, args: readonly string[]): Promise<void> {
  const began = Date.now();
  const { status } = await execute(program, args, 600, (text) => process.stdout.write(text));
  console.log(`${name}: ${status === 0 ? 'ok' : `FAILED (${status})`}, ${seconds(began)}`);
  if (status !== 0) broken.push(name);
}

/** Runs the test files of one group and adds up what they report. */
async function runGroup(group: Group): Promise<void> {
  const files = filesOf(group);
  if (files.length === 0) {
    console.log(`${group.name}: no test files`);
    return;
  }
  const began = Date.now();
  const args = [
    '--import',
    pathToFileURL(join(root, 'scripts/typescript.mjs')).href,
    join(root, 'scripts/test-files.mjs'),
    String(group.concurrency),
    // One file that hangs is ended and counted, and the others go on.
    String(2 * group.budgetSeconds * 1000),
  ];
  // The counts are the last line, cut off from what is shown.
  let pending = '';
  const { status, timedOut } = await execute(process.execPath, [...args, ...files], 3 * group.budgetSeconds, (text) => {
    pending += text;
    const shown = pending.lastIndexOf('\n', pending.length - 2) + 1;
    process.stdout.write(pending.slice(0, shown));
    pending = pending.slice(shown);
  });
  const counts = /^counts (\d+) (\d+) (\d+)\n$/.exec(pending);
  if (counts === null) process.stdout.write(pending);
  const [passed, failed, skipped] = [1, 2, 3].map((i) => Number(counts?.[i] ?? 0)) as [number, number, number];
  total.passed += passed;
  total.failed += failed;
  total.skipped += skipped;
  const took = (Date.now() - began) / 1000;
  console.log(
    `${group.name}: ${passed} passed, ${failed} failed, ${skipped} skipped in ${files.length} files, ${seconds(began)}` +
      (took > group.budgetSeconds ? ` (over its budget of ${group.budgetSeconds} s)` : ''),
  );
  if (timedOut) broken.push(`${group.name} was ended after ${3 * group.budgetSeconds} s`);
  else if (counts === null) broken.push(`${group.name} ended without counts`);
  else if (passed + failed + skipped === 0) broken.push(`${group.name} ran no test`);
  else if (status !== 0 && failed === 0) broken.push(`${group.name} exited with ${status}`);
}

/** The test files of a group, in the order in which they begin: none twice where one group's folder is in another's. */
function filesOf(group: Group): string[] {
  const folder = ({ folder, name }: Group): string => join(root, 'test', folder ?? name, '/');
  const others = GROUPS.map(folder).filter((other) => other !== folder(group) && other.startsWith(folder(group)));
  const files = testFiles(folder(group)).filter((file) => !others.some((other) => file.startsWith(other)));
  const first = (group.longest ?? []).map((name) => join(folder(group), `${name}.test.ts`));
  for (const file of first) if (!files.includes(file)) broken.push(`${file} is not there: see test-groups.ts`);
  return [...first.filter((file) => files.includes(file)), ...files.filter((file) => !first.includes(file))];
}

/** All *.test.ts below a directory, sorted; none when it does not exist. */
function testFiles(directory: string): string[] {
  if (!existsSync(directory)) return [];
  return readdirSync(directory, { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.test.ts'))
    .sort()
    .map((path) => join(directory, path));
}

/** Runs a program in a process group of its own, which is ended as a whole when its time is over. */
function execute(
  program: string,
  args: readonly string[],
  limitSeconds: number,
  onText: (text: string) => void,
): Promise<{ status: number; timedOut: boolean }> {
  return new Promise((resolve) => {
    const child = spawn(program, args, { cwd: root, detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
    let timedOut = false;
    const end = (signal: NodeJS.Signals): void => {
      try {
        if (child.pid !== undefined) process.kill(-child.pid, signal);
      } catch {
        // Gone already.
      }
    };
    const timer = setTimeout(() => {
      timedOut = true;
      end('SIGKILL');
    }, limitSeconds * 1000);
    const interrupted = (): void => {
      end('SIGKILL');
      process.exit(130);
    };
    process.once('SIGINT', interrupted).once('SIGTERM', interrupted);
    const finish = (status: number): void => {
      clearTimeout(timer);
      process.off('SIGINT', interrupted).off('SIGTERM', interrupted);
      resolve({ status, timedOut });
    };
    child.stdout.setEncoding('utf8').on('data', onText);
    child.stderr.setEncoding('utf8').on('data', (text: string) => process.stderr.write(text));
    child.once('error', (error) => {
      console.error(String(error));
      finish(-1);
    });
    // What a test left running would hold the output open, and more.
    child.once('exit', () => end('SIGKILL'));
    child.once('close', (status) => finish(status ?? -1));
  });
}

function seconds(since: number): string {
  return `${((Date.now() - since) / 1000).toFixed(1)} s`;
}
