import { ProtocolError } from '../../formats/core/errors.ts';
import { Chap, type ChapCredentials } from './chap.ts';
import type { IscsiLimits } from './limits.ts';
import { acceptInitiatorName, normalizeName } from './names.ts';
import { defaultParameters, negotiate, negotiationOrder, type SessionParameters, settle } from './parameters.ts';
import { encodeText, parseText, type TextPair } from './text.ts';

/** Status class and detail of a Login Response, as one 16-bit number (RFC 7143 section 11.13.5). */
export const LOGIN_SUCCESS = 0x0000;
export const LOGIN_INITIATOR_ERROR = 0x0200;
export const LOGIN_AUTHENTICATION_FAILURE = 0x0201;
export const LOGIN_AUTHORIZATION_FAILURE = 0x0202;
export const LOGIN_NOT_FOUND = 0x0203;
export const LOGIN_UNSUPPORTED_VERSION = 0x0205;
export const LOGIN_TOO_MANY_CONNECTIONS = 0x0206;
export const LOGIN_MISSING_PARAMETER = 0x0207;
export const LOGIN_SESSION_TYPE_NOT_SUPPORTED = 0x0209;
export const LOGIN_SESSION_DOES_NOT_EXIST = 0x020a;
export const LOGIN_INVALID_DURING_LOGIN = 0x020b;
export const LOGIN_TARGET_ERROR = 0x0300;
export const LOGIN_SERVICE_UNAVAILABLE = 0x0301;
export const LOGIN_OUT_OF_RESOURCES = 0x0302;

const SECURITY = 0;
const OPERATIONAL = 1;
/** The stage after login. */
export const FULL_FEATURE = 3;

/** Longest data segment before MaxRecvDataSegmentLength is negotiated. */
const LOGIN_SEGMENT = 8192;
/** Requests in one login: more than any initiator needs. */
const MAX_REQUESTS = 64;

/** Who may come in, by which proof. */
export interface LoginAuthentication {
  readonly chap?: ChapCredentials | undefined;
  readonly mutualChap?: ChapCredentials | undefined;
  readonly chapAlgorithms?: readonly number[] | undefined;
}

/** A target as login sees it. */
export interface LoginTarget extends LoginAuthentication {
  readonly name: string;
  readonly alias?: string | undefined;
  readonly portalGroupTag: number;
  /** The initiator allow-list's answer. */
  allows(initiator: string): boolean;
}

export interface LoginPolicy<T extends LoginTarget> {
  readonly limits: IscsiLimits;
  /** The target of that (normalized) name, if there is one here. */
  findTarget(name: string): T | undefined;
  /** Proof that discovery sessions need. */
  readonly discovery: LoginAuthentication;
}

/** A Login Request, decoded. */
export interface LoginRequest {
  readonly transit: boolean;
  readonly continues: boolean;
  readonly currentStage: number;
  readonly nextStage: number;
  readonly versionMin: number;
  readonly isid: Uint8Array;
  readonly tsih: number;
  readonly itt: number;
  readonly cid: number;
  readonly cmdSN: number;
  readonly data: Uint8Array;
}

/** What goes into the Login Response. */
export interface LoginReply {
  readonly status: number;
  readonly transit: boolean;
  readonly continues: boolean;
  readonly currentStage: number;
  readonly nextStage: number;
  readonly text: Uint8Array;
  /** For the log: why a login failed. */
  readonly reason?: string;
}

class LoginFailure extends Error {
  readonly status: number;
  constructor(status: number, reason: string) {
    super(reason);
    this.status = status;
  }
}

/** The login phase of one connection as a state machine: requests in, replies out (RFC 7143 section 6.3). */
export class Login<T extends LoginTarget> {
  /** Normal form of the initiator's name, after the first request. */
  initiator = '';
  discovery = false;
  target: T | undefined;
  isid: Uint8Array = new Uint8Array(6);
  tsih = 0;
  cid = 0;
  /** CmdSN of the first command after login. */
  cmdSN = 0;
  /** True after the reply that enters full-feature phase. */
  finished = false;
  readonly parameters: SessionParameters = defaultParameters();
  readonly #policy: LoginPolicy<T>;
  #requests = 0;
  #itt = 0;
  #stage: number = SECURITY;
  #collected: Uint8Array[] = [];
  #collectedLength = 0;
  readonly #seen = new Set<string>();
  #authenticated = false;
  #method: 'CHAP' | 'None' | undefined;
  #chap: Chap | undefined;
  #declared = false;
  /** The rest of an answer that did not fit in one segment, and the transition that waits for its end. */
  #rest: Uint8Array | undefined;
  #restTransit = false;
  #restNext = 0;

  constructor(policy: LoginPolicy<T>) {
    this.#policy = policy;
  }

  /** Takes one request. Does not throw: a reply with a status other than success ends the login. */
  step(request: LoginRequest): LoginReply {
    try {
      return this.#step(request);
    } catch (error) {
      const status =
        error instanceof LoginFailure
          ? error.status
          : error instanceof ProtocolError
            ? LOGIN_INITIATOR_ERROR
            : LOGIN_TARGET_ERROR;
      const reason = error instanceof Error ? error.message : String(error);
      return { ...this.#plain(request), status, reason };
    }
  }

  /** The reply that refuses a login for a reason that lies outside of the negotiation. */
  refuse(request: LoginRequest, status: number, reason: string): LoginReply {
    return { ...this.#plain(request), status, reason };
  }

  #step(request: LoginRequest): LoginReply {
    this.#checkRequest(request);
    if (this.#rest !== undefined) {
      if (request.data.length > 0) throw new LoginFailure(LOGIN_INITIATOR_ERROR, 'text while an answer is continued');
      return this.#send(request, this.#rest, this.#restTransit, this.#restNext);
    }
    this.#collectedLength += request.data.length;
    if (this.#collectedLength > this.#policy.limits.maxTextLength) {
      throw new LoginFailure(LOGIN_INITIATOR_ERROR, 'login text is too long');
    }
    this.#collected.push(request.data);
    if (request.continues) {
      if (request.transit) throw new LoginFailure(LOGIN_INITIATOR_ERROR, 'C and T bit together');
      return this.#plain(request);
    }
    const pairs = parseText(this.#collected.length === 1 ? request.data : Buffer.concat(this.#collected));
    this.#collected = [];
    this.#collectedLength = 0;
    const keys = new Map<string, string>();
    for (const [key, value] of pairs) {
      // CHAP has CHAP_I and CHAP_C in both directions, but each key from one side once.
      if (this.#seen.has(key)) throw new LoginFailure(LOGIN_INITIATOR_ERROR, `${key} is negotiated twice`);
      this.#seen.add(key);
      keys.set(key, value);
    }
    const answers: TextPair[] = [];
    if (this.#requests === 1 || this.initiator === '') this.#identify(keys, answers);
    const secured = request.currentStage === SECURITY ? this.#security(request, keys, answers) : this.#insist();
    this.#operational(request, keys, answers);
    const transit = request.transit && secured;
    return this.#send(request, encodeText(answers), transit, request.nextStage);
  }

  #checkRequest(request: LoginRequest): void {
    if (++this.#requests > MAX_REQUESTS) throw new LoginFailure(LOGIN_INITIATOR_ERROR, 'login does not end');
    if (request.versionMin > 0) throw new LoginFailure(LOGIN_UNSUPPORTED_VERSION, `version ${request.versionMin}`);
    const { currentStage: current, nextStage: next } = request;
    if (current !== SECURITY && current !== OPERATIONAL) {
      throw new LoginFailure(LOGIN_INITIATOR_ERROR, `login stage ${current}`);
    }
    if (request.transit && (next <= current || (next !== OPERATIONAL && next !== FULL_FEATURE))) {
      throw new LoginFailure(LOGIN_INITIATOR_ERROR, `transit from stage ${current} to ${next}`);
    }
    if (this.#requests === 1) {
      this.isid = request.isid.slice();
      this.tsih = request.tsih;
      this.cid = request.cid;
      this.cmdSN = request.cmdSN;
      this.#itt = request.itt;
      this.#stage = current;
      return;
    }
    if (current !== this.#stage) throw new LoginFailure(LOGIN_INITIATOR_ERROR, 'stage changed without transit');
    if (request.itt !== this.#itt || request.cid !== this.cid || request.tsih !== this.tsih) {
      throw new LoginFailure(LOGIN_INITIATOR_ERROR, 'ITT, TSIH or CID changed during login');
    }
    if (Buffer.compare(request.isid, this.isid) !== 0) {
      throw new LoginFailure(LOGIN_INITIATOR_ERROR, 'ISID changed during login');
    }
  }

  /** InitiatorName, SessionType, TargetName: due in the first request. */
  #identify(keys: Map<string, string>, answers: TextPair[]): void {
    const name = keys.get('InitiatorName');
    if (name === undefined) throw new LoginFailure(LOGIN_MISSING_PARAMETER, 'no InitiatorName');
    const initiator = acceptInitiatorName(name);
    if (initiator === undefined) throw new LoginFailure(LOGIN_INITIATOR_ERROR, 'InitiatorName is malformed');
    this.initiator = initiator;
    const type = keys.get('SessionType') ?? 'Normal';
    if (type !== 'Normal' && type !== 'Discovery') {
      throw new LoginFailure(LOGIN_SESSION_TYPE_NOT_SUPPORTED, 'unknown SessionType');
    }
    this.discovery = type === 'Discovery';
    if (this.discovery) return;
    const wanted = keys.get('TargetName');
    if (wanted === undefined) throw new LoginFailure(LOGIN_MISSING_PARAMETER, 'no TargetName');
    const target = this.#policy.findTarget(normalizeName(wanted));
    if (target === undefined) throw new LoginFailure(LOGIN_NOT_FOUND, 'no such target');
    if (!target.allows(initiator)) {
      throw new LoginFailure(LOGIN_AUTHORIZATION_FAILURE, `${initiator} is not on the allow-list`);
    }
    this.target = target;
    answers.push(['TargetPortalGroupTag', String(target.portalGroupTag)]);
    if (target.alias !== undefined) answers.push(['TargetAlias', target.alias]);
  }

  /** @returns true when the initiator has proved what it must */
  #security(request: LoginRequest, keys: Map<string, string>, answers: TextPair[]): boolean {
    const authentication = this.#authentication();
    const offered = keys.get('AuthMethod');
    if (offered !== undefined) {
      const wanted = authentication.chap === undefined ? 'None' : 'CHAP';
      if (!offered.split(',').includes(wanted)) {
        throw new LoginFailure(LOGIN_AUTHENTICATION_FAILURE, `no AuthMethod in common: ${wanted} is needed`);
      }
      this.#method = wanted;
      answers.push(['AuthMethod', wanted]);
    }
    if (authentication.chap === undefined) {
      this.#authenticated = true;
      return true;
    }
    if (this.#method === 'CHAP' && [...keys.keys()].some((key) => key.startsWith('CHAP_'))) {
      this.#chap ??= new Chap({
        credentials: authentication.chap,
        mutual: authentication.mutualChap,
        algorithms: authentication.chapAlgorithms,
      });
      const step = this.#chap.step(keys);
      if ('failed' in step) throw new LoginFailure(LOGIN_AUTHENTICATION_FAILURE, step.failed);
      // The initiator sends CHAP_I and CHAP_C only after ours: forget nothing else.
      answers.push(...step.reply);
      this.#authenticated = step.done;
      return this.#authenticated;
    }
    if (!this.#authenticated && request.transit && this.#method === undefined) {
      throw new LoginFailure(LOGIN_AUTHENTICATION_FAILURE, 'the initiator offers no authentication');
    }
    return this.#authenticated;
  }

  /** In the operational stage: nobody got here around the security stage. */
  #insist(): true {
    if (!this.#authenticated && this.#authentication().chap !== undefined) {
      throw new LoginFailure(LOGIN_AUTHENTICATION_FAILURE, 'the initiator skips authentication');
    }
    return true;
  }

  #authentication(): LoginAuthentication {
    return this.discovery ? this.#policy.discovery : (this.target as T);
  }

  #operational(request: LoginRequest, keys: Map<string, string>, answers: TextPair[]): void {
    const { limits } = this.#policy;
    const operational = [...keys].filter(([key]) => !isLoginKey(key));
    operational.sort(([a], [b]) => negotiationOrder(a) - negotiationOrder(b));
    for (const [key, value] of operational) {
      const answer = negotiate(key, value, this.parameters, limits, this.discovery);
      if (answer !== undefined) answers.push([key, answer]);
    }
    if (request.currentStage === OPERATIONAL && !this.#declared) {
      this.#declared = true;
      answers.push(['MaxRecvDataSegmentLength', String(limits.maxRecvDataSegmentLength)]);
    }
  }

  /** Sends text, in pieces when it is longer than a segment; the transition comes with the last piece. */
  #send(request: LoginRequest, text: Uint8Array, transit: boolean, next: number): LoginReply {
    if (text.length > LOGIN_SEGMENT) {
      this.#rest = text.subarray(LOGIN_SEGMENT);
      this.#restTransit = transit;
      this.#restNext = next;
      return { ...this.#plain(request), continues: true, text: text.subarray(0, LOGIN_SEGMENT) };
    }
    this.#rest = undefined;
    if (!transit) return { ...this.#plain(request), text };
    this.#stage = next;
    if (next === FULL_FEATURE) {
      settle(this.parameters);
      this.finished = true;
    }
    return { ...this.#plain(request), text, transit: true, nextStage: next };
  }

  #plain(request: LoginRequest): LoginReply {
    return {
      status: LOGIN_SUCCESS,
      transit: false,
      continues: false,
      currentStage: request.currentStage & 3,
      nextStage: 0,
      text: EMPTY,
    };
  }
}

const EMPTY = new Uint8Array(0);

const LOGIN_KEYS: ReadonlySet<string> = new Set([
  'InitiatorName',
  'InitiatorAlias',
  'SessionType',
  'TargetName',
  'AuthMethod',
]);

/** Keys that are not negotiated but dealt with by name. */
function isLoginKey(key: string): boolean {
  return LOGIN_KEYS.has(key) || key.startsWith('CHAP_');
}
