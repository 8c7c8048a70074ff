import type { IscsiLimits } from './limits.ts';
import { parseNumber } from './text.ts';

/** What login negotiated, with the RFC's defaults for what nobody mentioned (RFC 7143 section 13). */
export interface SessionParameters {
  headerDigest: boolean;
  dataDigest: boolean;
  initialR2T: boolean;
  immediateData: boolean;
  /** Longest data segment that the initiator takes. */
  maxSendDataSegmentLength: number;
  maxBurstLength: number;
  firstBurstLength: number;
  maxOutstandingR2T: number;
  defaultTime2Wait: number;
  defaultTime2Retain: number;
}

export function defaultParameters(): SessionParameters {
  return {
    headerDigest: false,
    dataDigest: false,
    initialR2T: true,
    immediateData: true,
    maxSendDataSegmentLength: 8192,
    maxBurstLength: 262144,
    firstBurstLength: 65536,
    maxOutstandingR2T: 1,
    defaultTime2Wait: 2,
    defaultTime2Retain: 20,
  };
}

type Negotiate = (value: string, parameters: SessionParameters, limits: IscsiLimits) => string | undefined;

const REJECT = 'Reject';
const IRRELEVANT = 'Irrelevant';

/** The first value of their list that we have. */
function list(ours: readonly string[], set: (p: SessionParameters, choice: string) => void): Negotiate {
  return (value, parameters) => {
    const choice = value.split(',').find((item) => ours.includes(item));
    if (choice === undefined) return REJECT;
    set(parameters, choice);
    return choice;
  };
}

/** A number between bounds: the result of `pick` on theirs and ours. */
function number(
  low: number,
  high: number,
  pick: (theirs: number, limits: IscsiLimits, parameters: SessionParameters) => number,
  set: (p: SessionParameters, result: number) => void,
): Negotiate {
  return (value, parameters, limits) => {
    const theirs = parseNumber(value);
    if (theirs === undefined || theirs < low || theirs > high) return REJECT;
    const result = pick(theirs, limits, parameters);
    set(parameters, result);
    return String(result);
  };
}

/** Yes or No: combined with ours by OR or AND. */
function boolean(
  combine: (theirs: boolean) => boolean,
  set: (p: SessionParameters, result: boolean) => void,
): Negotiate {
  return (value, parameters) => {
    if (value !== 'Yes' && value !== 'No') return REJECT;
    const result = combine(value === 'Yes');
    set(parameters, result);
    return result ? 'Yes' : 'No';
  };
}

const nothing = (): void => {};
const MAX_LENGTH = 0xffffff;

interface Rule {
  readonly negotiate: Negotiate;
  /** The key means nothing in a discovery session. */
  readonly normalOnly?: boolean;
}

/** One line per key: what we answer and what it sets. */
const RULES: Readonly<Record<string, Rule>> = {
  HeaderDigest: { negotiate: list(['None', 'CRC32C'], (p, c) => (p.headerDigest = c === 'CRC32C')) },
  DataDigest: { negotiate: list(['None', 'CRC32C'], (p, c) => (p.dataDigest = c === 'CRC32C')) },
  MaxConnections: { negotiate: number(1, 65535, () => 1, nothing), normalOnly: true },
  InitialR2T: {
    negotiate: boolean(
      (theirs) => theirs || false,
      (p, r) => (p.initialR2T = r),
    ),
    normalOnly: true,
  },
  ImmediateData: {
    negotiate: boolean(
      (theirs) => theirs && true,
      (p, r) => (p.immediateData = r),
    ),
    normalOnly: true,
  },
  MaxRecvDataSegmentLength: {
    // A declaration: no answer, ours goes out by itself.
    negotiate: (value, parameters) => {
      const theirs = parseNumber(value);
      if (theirs === undefined || theirs < 512 || theirs > MAX_LENGTH) return REJECT;
      parameters.maxSendDataSegmentLength = theirs;
      return undefined;
    },
  },
  MaxBurstLength: {
    negotiate: number(
      512,
      MAX_LENGTH,
      (n, limits) => Math.min(n, limits.maxBurstLength),
      (p, n) => (p.maxBurstLength = n),
    ),
    normalOnly: true,
  },
  FirstBurstLength: {
    negotiate: number(
      512,
      MAX_LENGTH,
      (n, limits, p) => Math.min(n, limits.firstBurstLength, p.maxBurstLength),
      (p, n) => (p.firstBurstLength = n),
    ),
    normalOnly: true,
  },
  MaxOutstandingR2T: {
    negotiate: number(
      1,
      65535,
      (n, limits) => Math.min(n, limits.maxOutstandingR2T),
      (p, n) => (p.maxOutstandingR2T = n),
    ),
    normalOnly: true,
  },
  DefaultTime2Wait: {
    negotiate: number(
      0,
      3600,
      (n) => Math.max(n, 2),
      (p, n) => (p.defaultTime2Wait = n),
    ),
  },
  // Nothing of a lost session is kept, which is what 0 says.
  DefaultTime2Retain: {
    negotiate: number(
      0,
      3600,
      () => 0,
      (p, n) => (p.defaultTime2Retain = n),
    ),
  },
  DataPDUInOrder: { negotiate: boolean(() => true, nothing), normalOnly: true },
  DataSequenceInOrder: { negotiate: boolean(() => true, nothing), normalOnly: true },
  ErrorRecoveryLevel: { negotiate: number(0, 2, () => 0, nothing) },
  // Gone from RFC 7143; older initiators still send them.
  IFMarker: { negotiate: boolean(() => false, nothing) },
  OFMarker: { negotiate: boolean(() => false, nothing) },
  IFMarkInt: { negotiate: () => IRRELEVANT },
  OFMarkInt: { negotiate: () => IRRELEVANT },
  TaskReporting: { negotiate: list(['RFC3720'], nothing), normalOnly: true },
  iSCSIProtocolLevel: { negotiate: number(0, 31, (n) => Math.min(n, 1), nothing), normalOnly: true },
};

/** Keys whose result others depend on are negotiated first, wherever they are in the text. */
export function negotiationOrder(key: string): number {
  return key === 'FirstBurstLength' ? 1 : 0;
}

/** Answers to our own offers and refusals: they are not negotiated further. */
const ANSWERS: ReadonlySet<string> = new Set(['NotUnderstood', IRRELEVANT, REJECT]);

/** Negotiates one operational key. @returns the answer; undefined when the key takes none */
export function negotiate(
  key: string,
  value: string,
  parameters: SessionParameters,
  limits: IscsiLimits,
  discovery: boolean,
): string | undefined {
  const rule = Object.hasOwn(RULES, key) ? RULES[key] : undefined;
  if (ANSWERS.has(value)) return undefined;
  if (rule === undefined) return 'NotUnderstood';
  if (discovery && rule.normalOnly) return IRRELEVANT;
  return rule.negotiate(value, parameters, limits);
}

/** After the last key: what no single key can see. */
export function settle(parameters: SessionParameters): void {
  parameters.firstBurstLength = Math.min(parameters.firstBurstLength, parameters.maxBurstLength);
}
