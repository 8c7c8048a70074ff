import assert from 'node:assert/strict';
import { test } from 'node:test';
import { configStringOf } from '../../../src/daemon/kernel-export.ts';
import { requestOf } from '../../../src/daemon/tcmu-handlers.ts';
import { escapeText, parseConfigString } from '../../../src/tcmu/config-string.ts';
import { randomFor } from '../../support/random.ts';

const nothing = {
  snapshot: undefined,
  readOnly: false,
  overlay: undefined,
  secretFile: undefined,
  discardNoUnref: false,
  optical: undefined,
};

test('a configuration is a handler and an image', () => {
  assert.deepEqual(parseConfigString('qcow2//images/disk.qcow2'), {
    handler: 'qcow2',
    image: '/images/disk.qcow2',
    ...nothing,
  });
});

test('options stand behind semicolons', () => {
  assert.deepEqual(parseConfigString('qcow2//a;snapshot=before%20it;readonly'), {
    handler: 'qcow2',
    image: '/a',
    ...nothing,
    snapshot: 'before it',
    readOnly: true,
  });
  const { secretFile, discardNoUnref } = parseConfigString(
    'qcow2//a;secret-file=/etc/one%20key;secret-file=/two;discard-no-unref',
  );
  assert.deepEqual([secretFile, discardNoUnref], [['/etc/one key', '/two'], true]);
  assert.equal(parseConfigString('image//a;optical').optical, true);
  assert.equal(parseConfigString('image//a.iso;disk').optical, false);
  assert.deepEqual(parseConfigString('image//a;overlay=/b.qcow2'), {
    handler: 'image',
    image: '/a',
    ...nothing,
    overlay: '/b.qcow2',
  });
});

test('what tcmu-runner added for itself is passed over', () => {
  assert.equal(parseConfigString('qcow//a;tcmur_cmd_time_out=30;').image, '/a');
});

for (const [text, message] of [
  ['qcow2', /not HANDLER\/IMAGE/],
  ['/a', /not HANDLER\/IMAGE/],
  ['qcow2/', /names no image/],
  ['qcow2//a b', /cannot keep " "/],
  ['qcow2//a:b', /cannot keep ":"/],
  ['qcow2//a,b', /cannot keep ","/],
  ['qcow2//a%2', /not followed by two hexadecimal digits/],
  ['qcow2//a%zz', /not followed by two hexadecimal digits/],
  ['qcow2//a%00', /zero byte/],
  ['qcow2//a;size=1', /no option "size"/],
  ['qcow2//a;readonly=1', /has no value/],
  ['qcow2//a;snapshot', /needs a value/],
  ['qcow2//a;snapshot=', /needs a value/],
  ['qcow2//a;overlay=b', /not an absolute path/],
  ['qcow2//a;secret-file=b', /not an absolute path/],
  ['qcow2//a;discard-no-unref=1', /has no value/],
  ['qcow2//a;readonly;discard-no-unref', /a read-only disk discards nothing/],
  ['raw//a;optical;overlay=/b', /a disc has no use for an overlay/],
  ['qcow2//a;readonly;overlay=/b', /no use for an overlay/],
  [`qcow2//${'a'.repeat(250)}`, /takes 255/],
] as const) {
  test(`${JSON.stringify(text.slice(0, 30))} is refused with the reason`, () => {
    assert.throws(() => parseConfigString(text), { code: 'INVALID', message });
  });
}

test('every path can be escaped, and is the same when it is parsed', (t) => {
  const random = randomFor(t);
  const alphabet = ['a', '/', ':', ',', ' ', '%', ';', '=', 'é', '日', '\u{1f4be}', '\t'];
  for (let round = 0; round < 500; round++) {
    const path = `/${Array.from({ length: random.next() % 20 }, () => alphabet[random.next() % alphabet.length]).join('')}`;
    const text = `raw/${escapeText(path)}`;
    if (text.length > 255) continue;
    assert.doesNotMatch(text, /[:,\s]/);
    assert.equal(parseConfigString(text).image, path);
  }
});

test('what an export asks for is in its configuration string, and comes out of it the same', () => {
  const request = {
    image: '/images/my disk.qcow2',
    format: 'qcow2',
    secretFile: ['/etc/a:b', '/two'],
    discardNoUnref: true,
  };
  const config = configStringOf(request, false);
  assert.equal(config, 'qcow2//images/my%20disk.qcow2;secret-file=/etc/a%3Ab;secret-file=/two;discard-no-unref;disk');
  const { image, format, secretFile, discardNoUnref, optical } = requestOf(config);
  assert.deepEqual({ image, format, secretFile, discardNoUnref }, request);
  assert.equal(optical, false);
});
