import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { parseConfig, readConfig } from '../../../src/daemon/config.ts';
import { compareConfigs, describeChanges } from '../../../src/daemon/config-changes.ts';
import { PROJECT_ROOT } from '../../support/process.ts';
import { temporaryDirectory, temporaryFile } from '../../support/temporary.ts';

const FILE = '/etc/lunette/lunette.toml';
const parse = (...lines: string[]) => parseConfig(lines.join('\n'), FILE);
const DISK = ['[[export]]', 'name = "disk"', 'image = "/images/disk.qcow2"', 'transport = "iscsi"'];

test('an empty file is a configuration: everything has a default', () => {
  const config = parse('');
  assert.equal(config.cache, 256 * 1024 * 1024);
  assert.equal(config.tcmu.enable, true);
  assert.equal(config.tcmu['unknown-handlers'], 'refuse');
  assert.deepEqual(config.iscsi.listen, { host: '127.0.0.1', port: 3260 });
  assert.deepEqual(config.nbd.listen, { host: '127.0.0.1', port: 10809 });
  assert.deepEqual(config.export, []);
});

test('sizes, addresses and exports are read', () => {
  const config = parse('cache = "1.5G"', 'metrics = "127.0.0.1:9000"', '[nbd]', 'listen = "[::1]:0"', ...DISK);
  assert.equal(config.cache, 1.5 * 1024 ** 3);
  assert.deepEqual(config.metrics, { host: '127.0.0.1', port: 9000 });
  assert.deepEqual(config.nbd.listen, { host: '::1', port: 0 });
  assert.deepEqual(config.export[0], {
    name: 'disk',
    image: '/images/disk.qcow2',
    transport: 'iscsi',
    'read-only': false,
    optical: false,
    'discard-no-unref': false,
    'block-size': 512,
  });
});

const WRONG: readonly [rule: string, lines: string[], field: string | undefined, message: RegExp][] = [
  ['text that is no TOML, with its line', ['cache = "1G"', 'x = = 1'], undefined, /^line 2, column \d+: /],
  ['an unknown key', ['cahce = 1'], undefined, /no key cahce/],
  ['an unknown key of a section', ['[nbd]', 'port = 1'], 'nbd', /no key port/],
  ['a size that is none', ['cache = "much"'], 'cache', /size/],
  ['a value of another type', ['[tcmu]', 'enable = "yes"'], 'tcmu.enable', /boolean/],
  ['a choice that there is not', ['log-level = "loud"'], 'log-level', /error, warn, info, debug/],
  ['an address that is none', ['metrics = "::1:80"'], 'metrics', /address/],
  ['a directory that is relative', ['allow = ["images"]'], 'allow[0]', /absolute/],
  ['an export without an image', ['[[export]]', 'name = "a"', 'transport = "nbd"'], 'export[0].image', /missing/],
  [
    'an export with an odd name',
    ['[[export]]', 'name = "a/b"', 'image = "/x"', 'transport = "nbd"'],
    'export[0].name',
    /letters/,
  ],
  [
    'an image with a relative path',
    ['[[export]]', 'name = "a"', 'image = "x.raw"', 'transport = "nbd"'],
    'export[0].image',
    /absolute path or a URL/,
  ],
  ['two exports of one name', [...DISK, ...DISK], 'export[1].name', /name of another/],
  [
    'an overlay for what is only read',
    [...DISK, 'read-only = true', 'overlay = "/o.qcow2"'],
    'export[0].overlay',
    /nothing can be written/,
  ],
  [
    'places that discarded clusters keep, where nothing is discarded',
    [...DISK, 'read-only = true', 'discard-no-unref = true'],
    'export[0].discard-no-unref',
    /nothing can be written/,
  ],
  ['a passphrase in a file without a whole path', [...DISK, 'secret-file = "p"'], 'export[0].secret-file', /absolute/],
  [
    'a disc over NBD',
    ['[[export]]', 'name = "a"', 'image = "/x"', 'transport = "nbd"', 'optical = true'],
    'export[0].optical',
    /nbd/,
  ],
  [
    'one port for two targets',
    [...DISK, '[[export]]', 'name = "k"', 'image = "/k"', 'transport = "lio"'],
    'lio.listen',
    /3260/,
  ],
  ['a user without a secret', ['[iscsi]', 'chap-user = "me"'], 'iscsi.chap-user', /chap-secret-file/],
  [
    'mutual CHAP alone',
    ['[lio]', 'mutual-chap-user = "me"', 'mutual-chap-secret-file = "/s"'],
    'lio.mutual-chap-user',
    /chap-user/,
  ],
];
for (const [rule, lines, field, message] of WRONG) {
  test(`refused with file and key: ${rule}`, () => {
    assert.throws(() => parse(...lines), { code: 'INVALID', path: FILE, field, message });
  });
}

test('the example that is shipped is a configuration, and says the defaults', async () => {
  const example = await readConfig(join(PROJECT_ROOT, 'scripts/packaging/lunette.toml'));
  const { allow, ...rest } = example;
  const { allow: none, ...defaults } = parse('');
  assert.deepEqual(rest, defaults);
  assert.deepEqual([allow.length, none.length], [2, 0]);
});

test('every line of the example that is switched off is a key that there is', async () => {
  const text = await readFile(join(PROJECT_ROOT, 'scripts/packaging/lunette.toml'), 'utf8');
  const on = text.replace(/^# (?=\[\[|[a-z-]+ = )/gm, '');
  const config = parse(...on.split('\n').filter((line) => !line.startsWith('#')));
  assert.equal(config.export[0]?.name, 'disk0');
  assert.equal(config.iscsi['chap-user'], 'name');
  assert.equal(config.nbd.socket, '/run/lunette/nbd.sock');
});

test('an image may be a URL', () => {
  assert.equal(parse('[[export]]', 'name = "a"', 'image = "nbd://host/x"', 'transport = "nbd"').export.length, 1);
});

test('a file that is not there, and one that is far too long, are said so', async (t) => {
  const missing = join(await temporaryDirectory(t), 'none.toml');
  await assert.rejects(readConfig(missing), { code: 'NOT_FOUND', path: missing });
  const long = await temporaryFile(t, 'long.toml', '#'.repeat(1024 * 1024 + 1));
  await assert.rejects(readConfig(long), { code: 'INVALID', path: long });
});

test('changes are told apart: exports by name, keys that wait for a restart', () => {
  const before = parse('cache = "1G"', ...DISK, '[[export]]', 'name = "old"', 'image = "/old"', 'transport = "nbd"');
  const after = parse(
    'cache = "2G"',
    'log-level = "debug"',
    '[nbd]',
    'socket = "/run/x"',
    ...DISK,
    'read-only = true',
    '[[export]]',
    'name = "new"',
    'image = "/new"',
    'transport = "nbd"',
  );
  const changes = compareConfigs(before, after);
  assert.deepEqual(changes.later, ['cache', 'log-level', 'nbd.socket']);
  assert.deepEqual(describeChanges(changes), [
    'removed export old (/old over nbd)',
    'added export new (/new over nbd)',
    'changed export disk: read-only',
    'changed cache: takes effect when the daemon is started again',
    'changed log-level: takes effect when the daemon is started again',
    'changed nbd.socket: takes effect when the daemon is started again',
  ]);
  assert.deepEqual(describeChanges(compareConfigs(after, after)), []);
});
