import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BusError, BusService } from '../../../src/dbus/bus-service.ts';
import { PrivateBus, requiresBus, requiresRoot, until } from '../../support/private-bus.ts';
import type { Cleanup } from '../../support/temporary.ts';

const skip = requiresBus();
const NAME = 'org.example.Service';
const PATH = '/org/example/Object';

async function setUp(t: Cleanup) {
  const bus = await PrivateBus.start(t);
  const events: string[] = [];
  const service = await BusService.connect({
    lost: () => events.push('lost'),
    back: () => events.push('back'),
    refused: (error) => events.push((error as { code?: string }).code ?? 'refused'),
  });
  t.after(() => service.close());
  service.add(PATH, NAME, {
    properties: { Words: { signature: 's', get: () => 'some words' } },
    methods: {
      Twice: { in: 'u', out: 'u', names: ['number', 'twice'], call: ([number]) => [2 * Number(number)] },
      Fail: {
        in: '',
        out: '',
        names: [],
        call: () => {
          throw new Error('it did not work');
        },
      },
      Refuse: {
        in: '',
        out: '',
        names: [],
        call: () => {
          throw new BusError('org.example.Error.Refused', 'not today');
        },
      },
      MayI: { in: '', out: 'b', names: ['root'], call: async (_values, caller) => [await service.isRoot(caller)] },
    },
  });
  await service.own(NAME);
  return { bus, service, events };
}

test('methods and properties are called over the bus; errors have names', { skip }, async (t) => {
  const { bus } = await setUp(t);
  assert.match((await bus.call(NAME, PATH, `${NAME}.Twice`, ['uint32:21'])).stdout, /uint32 42/);
  const get = 'org.freedesktop.DBus.Properties.Get';
  assert.match((await bus.call(NAME, PATH, get, [`string:${NAME}`, 'string:Words'])).stdout, /some words/);
  const failed = async (path: string, method: string, args: string[] = []): Promise<string> => {
    const { status, stderr } = await bus.call(NAME, path, method, args);
    assert.equal(status, 1);
    return stderr;
  };
  assert.match(await failed(PATH, `${NAME}.Fail`), /org\.freedesktop\.DBus\.Error\.Failed: it did not work/);
  assert.match(await failed(PATH, `${NAME}.Refuse`), /org\.example\.Error\.Refused: not today/);
  assert.match(await failed(PATH, `${NAME}.Twice`, ['string:21']), /InvalidArgs: Twice takes \(u\), not \(s\)/);
  assert.match(await failed(PATH, `${NAME}.Thrice`), /UnknownMethod/);
  assert.match(await failed('/org/example/Other', `${NAME}.Twice`, ['uint32:1']), /UnknownObject/);
});

test('an answer that is not of the type that was announced is an error for whoever asked, and nothing else', {
  skip,
}, async (t) => {
  const { bus, service } = await setUp(t);
  const answers: Record<string, () => unknown> = {
    Fewer: () => [],
    Other: () => [-1],
    Nothing: () => undefined,
    Thrown: () => {
      throw 'no error at all'; // as a promise of somebody else's may reject
    },
  };
  const methods = Object.entries(answers).map(([name, call]) => [
    name,
    { in: '', out: 't', names: [], call: () => call() as unknown[] },
  ]);
  service.add('/wrong', NAME, { methods: Object.fromEntries(methods) });
  for (const name of Object.keys(answers)) {
    const { status, stderr } = await bus.call(NAME, '/wrong', `${NAME}.${name}`);
    assert.deepEqual([name, status, /DBus\.Error\.Failed/.test(stderr)], [name, 1, true], stderr);
  }
  assert.match((await bus.call(NAME, PATH, `${NAME}.Twice`, ['uint32:1'])).stdout, /uint32 2/);
});

test('who calls is known by the user that the bus names', { skip: skip || requiresRoot() }, async (t) => {
  const { bus } = await setUp(t);
  assert.match((await bus.call(NAME, PATH, `${NAME}.MayI`)).stdout, /boolean true/);
  assert.match((await bus.call(NAME, PATH, `${NAME}.MayI`, [], { asNobody: true })).stdout, /boolean false/);
});

test('a bus that ends is noticed; when it is back, so are objects and names', { skip }, async (t) => {
  const { bus, service, events } = await setUp(t);
  await bus.end();
  await until(() => events.includes('lost'), 'the end of the bus');
  await assert.rejects(service.call(NAME, PATH, NAME, 'Twice', 'u', [1]), /no connection to the bus/);
  await bus.begin();
  await until(() => events.includes('back'), 'the connection');
  assert.match((await bus.call(NAME, PATH, `${NAME}.Twice`, ['uint32:4'])).stdout, /uint32 8/);
  assert.deepEqual(events, ['lost', 'back']);
});

test('a call that waits when the bus ends fails', { skip }, async (t) => {
  const { bus, service } = await setUp(t);
  service.add('/slow', NAME, {
    methods: { Wait: { in: '', out: '', names: [], call: () => new Promise(() => undefined) } },
  });
  const answer = assert.rejects(service.call(NAME, '/slow', NAME, 'Wait', '', []), /it has ended|ECONNRESET|EPIPE/);
  await until(async () => (await service.ownerOf(NAME)) !== undefined, 'an answer');
  await bus.end();
  await answer;
});

test('a name that somebody else has taken meanwhile is tried again until it is free', { skip }, async (t) => {
  const { bus, service, events } = await setUp(t);
  await bus.end();
  await until(() => events.includes('lost'), 'the end of the bus');
  await bus.begin();
  const other = await BusService.connect({ lost: () => undefined, back: () => undefined, refused: () => undefined });
  t.after(() => other.close());
  // Whoever is first has it; when that is us, there is nothing to be seen here.
  const taken = await other.own(NAME).then(
    () => true,
    () => false,
  );
  if (taken) {
    await until(() => events.includes('EXISTS'), 'the refusal');
    await other.disown(NAME);
  }
  await until(() => events.includes('back'), 'the name');
  assert.equal(typeof (await service.ownerOf(NAME)), 'string');
});

test('without a bus the error says what to do', async (t) => {
  const before = process.env.DBUS_SYSTEM_BUS_ADDRESS;
  process.env.DBUS_SYSTEM_BUS_ADDRESS = 'unix:path=/nowhere/bus';
  t.after(() => {
    if (before === undefined) delete process.env.DBUS_SYSTEM_BUS_ADDRESS;
    else process.env.DBUS_SYSTEM_BUS_ADDRESS = before;
  });
  const silent = { lost: () => undefined, back: () => undefined, refused: () => undefined };
  await assert.rejects(BusService.connect(silent), { code: 'UNAVAILABLE', help: /start dbus/ });
});
