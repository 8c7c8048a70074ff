import assert from 'node:assert/strict';
import { readFile, truncate } from 'node:fs/promises';
import { test } from 'node:test';
import type { Command } from 'commander';
import { processContext } from '../../../src/cli/context.ts';
import { createProgram } from '../../../src/cli/program.ts';
import { cli } from '../../support/cli.ts';
import { type Cleanup, temporaryFile } from '../../support/temporary.ts';

async function rawImage(t: Cleanup, size = 1024 * 1024): Promise<string> {
  const path = await temporaryFile(t, 'disk.raw', '');
  await truncate(path, size);
  return path;
}

test('--version prints the version of package.json', async () => {
  const { version } = JSON.parse(await readFile(new URL('../../../package.json', import.meta.url), 'utf8'));
  assert.deepEqual(await cli('--version'), { status: 0, stdout: `${version}\n`, stderr: '' });
});

test('without a command the help goes to stderr and the status is 2', async () => {
  const { status, stdout, stderr } = await cli();
  assert.equal(status, 2);
  assert.equal(stdout, '');
  assert.match(stderr, /^Usage: lunette/);
});

/** The words of every command, groups and what is in them. */
function allCommands(command: Command, above: readonly string[] = []): string[][] {
  return command.commands.flatMap((each) => {
    const words = [...above, each.name()];
    return [words, ...allCommands(each, words)];
  });
}

test('every command has a help with examples, on stdout, with the global options', async () => {
  for (const words of allCommands(createProgram(processContext()))) {
    const command = words.join(' ');
    const { status, stdout, stderr } = await cli(...words, '--help');
    assert.equal(status, 0, command);
    assert.equal(stderr, '', command);
    assert.match(stdout, /^Examples:\n {2}lunette /m, command);
    assert.match(stdout, /--quiet/, command);
  }
});

test('a command that the line begins with is made as it is among all of them', () => {
  const described = ({ options }: Command): string[] => options.map(({ flags }) => flags);
  for (const among of createProgram(processContext()).commands) {
    const alone = createProgram(processContext(), among.name()).commands.find((each) => each.name() === among.name());
    assert.ok(alone !== undefined, among.name());
    assert.deepEqual(described(alone), described(among));
    assert.deepEqual(allCommands(alone), allCommands(among));
  }
});

test('every command that opens an image takes a file with its passphrase, and says so in the same words', () => {
  for (const command of createProgram(processContext()).commands) {
    const opens = command.registeredArguments.some((argument) => ['image', 'first', 'file'].includes(argument.name()));
    if (!opens) continue;
    const option = command.options.find(({ long }) => long === '--secret-file');
    assert.match(option?.description ?? '', /^encrypted images: .*repeatable/, command.name());
  }
});

test('what the command line has wrong is status 2, one line, and one line of help', async () => {
  const wrong: [string[], RegExp][] = [
    [['frobnicate'], /^lunette: unknown command 'frobnicate' \(USAGE\)\nlunette --help says what is possible\.\n$/],
    [['inof'], /^lunette: unknown command 'inof' \(USAGE\)\nDid you mean info\?\n$/],
    [['info'], /^lunette: missing required argument 'image' \(USAGE\)\nlunette info --help says what is possible\.\n$/],
    [['info', '--no-such', 'x'], /^lunette: unknown option '--no-such' \(USAGE\)\n.+\n$/],
    [
      ['info', '--output', 'xml', 'x'],
      /^lunette: option '--output <form>' argument 'xml' is invalid.+ \(USAGE\)\n.+\n$/,
    ],
    [['info', '--json', '--output', 'human', 'x'], /contradict/],
    [['export', '--cache', 'much', 'x'], /A size is a number of bytes.+\(USAGE\)/],
    [['export', '--transport', 'nbd', '--chap', 'a', 'x'], /^lunette: --chap is for --transport iscsi \(USAGE\)\n/],
    [['export', '--socket', '/s', 'x'], /^lunette: --socket is for --transport nbd \(USAGE\)\n/],
    [['export', '--transport', 'nbd', '--tls-required', 'x'], /TLS that is required needs a certificate/],
    [['export', '--transport', 'nbd', '--name', 'n', 'x', 'y'], /one name is not enough for several exports/],
    [['export', '--transport', 'nbd', '--socket', '/s', '--listen', '0', 'x'], /two places to listen/],
    [['export', '--fabric', 'loopback', 'x'], /--fabric is for --transport lio/],
    [['export', '--listen', '::1', 'x'], /an IPv6 address goes in brackets \(USAGE\)/],
    [['export', '--chap', 'a', 'x'], /--chap needs --chap-secret-file FILE \(USAGE\)/],
    [['export', '--mutual-chap-secret-file', 'a', 'x'], /--mutual-chap-secret-file needs --mutual-chap USER/],
    [['export', '--block-size', '520', 'x'], /Allowed choices are 512, 4096/],
    [['export', '--overlay', 'o.qcow2', 'a', 'b'], /--overlay is for one image/],
    [['export', '--name', 'n', 'a', 'b'], /one name is not enough for several targets \(USAGE\)\n.*--one-target/],
    [['export', '--name', 'a b', 'x'], /no iSCSI name \(USAGE\)/],
    [
      ['export', '--ephemeral', '--overlay', 'o.qcow2', 'x'],
      /temporary overlay or to one that is kept, not to both \(USAGE\)/,
    ],
    [['export', '--read-only', '--ephemeral', 'x'], /a read-only export has no use for an overlay \(USAGE\)/],
    [['export', '--discard-no-unref', '--read-only', 'x'], /a read-only export discards nothing.* \(USAGE\)/],
    [['amend', '-o', 'encrypt.state=active,encrypt.new-secret=x', 'x'], /encrypt.new-secret-file=FILE \(USAGE\)/],
    [['export', '-U', 'x'], /without locks the image can only be read \(USAGE\)\n.*--read-only/],
  ];
  for (const [args, text] of wrong) {
    const { status, stdout, stderr } = await cli(...args);
    assert.match(stderr, text, args.join(' '));
    assert.equal(status, 2, args.join(' '));
    assert.equal(stdout, '', args.join(' '));
  }
});

test('a stack trace comes with --debug only, wherever it stands', async () => {
  assert.doesNotMatch((await cli('info', '/nonexistent')).stderr, /^ +at /m);
  assert.match((await cli('--debug', 'info', '/nonexistent')).stderr, /^ +at .+\n[\s\S]*caused by: /m);
  assert.match((await cli('info', '/nonexistent', '--debug')).stderr, /^ +at /m);
});

test('a missing image is one line with its path, status 1', async () => {
  assert.deepEqual(await cli('info', '/nonexistent/disk.qcow2'), {
    status: 1,
    stdout: '',
    stderr: 'lunette: /nonexistent/disk.qcow2: cannot open: no such file or directory (NOT_FOUND)\n',
  });
});

test('with the wrong -f the line that programs look for ends in qemu-img’s words', async (t) => {
  const { status, stderr } = await cli('info', '-f', 'qcow2', await rawImage(t));
  assert.equal(status, 1);
  assert.match(stderr, /\(BAD_MAGIC\)\n.*Image is not in qcow2 format$/m);
});

test('an unknown format names those there are', async (t) => {
  assert.match((await cli('info', '-f', 'vhdx', await rawImage(t))).stderr, /vhdx \(UNSUPPORTED\)\nFormats: .*qcow2/);
});

test('a file of a format that is not known here is not taken for raw, unless -f raw says so', async (t) => {
  const path = await temporaryFile(t, 'disk.vhdx', Buffer.from(`vhdxfile${'\0'.repeat(1016)}`));
  const { status, stderr } = await cli('info', path);
  assert.equal(status, 1);
  assert.match(stderr, /is a vhdx image.+\(UNSUPPORTED\)\n.*-f raw/);
  assert.equal((await cli('info', '-f', 'raw', path)).status, 0);
});

test('info prints text, and JSON with --json or --output json', async (t) => {
  const path = await rawImage(t);
  assert.match(
    (await cli('info', path)).stdout,
    /^image: .+\nfile format: raw\nvirtual size: 1 MiB \(1048576 bytes\)\n/,
  );
  const json = await cli('info', '--json', path);
  assert.equal(JSON.parse(json.stdout)['virtual-size'], 1048576);
  assert.deepEqual(await cli('info', '--output', 'json', path), json);
  assert.match((await cli('info', '--output', 'human', path)).stdout, /^image: /);
});

test('--compat 7.2 leaves out the children, so that virtual-size is there once', async (t) => {
  const path = await rawImage(t);
  const count = (text: string) => text.split('"virtual-size"').length - 1;
  assert.equal(count((await cli('info', '--json', path)).stdout), 2);
  assert.equal(count((await cli('info', '--json', '--compat', '7.2', path)).stdout), 1);
  assert.equal(count((await cli('info', '--json', '--compat', '10.0', path)).stdout), 2);
});

test('doctor always succeeds, and says how to get what is missing', async () => {
  const human = await cli('doctor');
  assert.equal(human.status, 0);
  assert.match(human.stdout, /native addon/);
  const { groups } = JSON.parse((await cli('doctor', '--json')).stdout) as {
    groups: { facts: { id: string; state: string; detail: string; help?: string }[] }[];
  };
  const facts = groups.flatMap((group) => group.facts);
  const ids = ['addon', 'io-queue', 'crc32c', 'ofd-locks', 'nowait-reads', 'zstd-napi', 'lz4-napi', 'dbus-next'];
  for (const id of [
    ...ids,
    'qemu-img',
    'qemu-nbd',
    'target_core_user',
    'iscsi_target_mod',
    'tcm_loop',
    'configfs',
    'dbus',
    'dbus-policy',
    'tcmu-daemon',
    'io_uring',
  ]) {
    const fact = facts.find((candidate) => candidate.id === id);
    assert.ok(fact !== undefined || id === 'nowait-reads', id);
  }
  for (const { id, state, detail, help } of facts) {
    assert.match(state, /^(yes|partly|no)$/, id);
    assert.notEqual(detail, '', id);
    if (id === 'qemu-img' && state === 'no') assert.match(help ?? '', /apt install qemu-utils/);
  }
});
